"""FlashAttention over the paged cache: vllm-flash-attn's variable-length kernels (FA3 on Hopper).

Decode and prefill rows go in one call or in two. Nothing is planned on the host: lengths and page tables are read on the device, so a step may
be captured in a CUDA graph. The PyPI package `vllm-flash-attn` stopped at torch 2.4; its kernels live on inside the `vllm` wheel, on
torch's stable ABI, and are loaded from there without importing vLLM.
"""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Literal

import torch

from raysgl.kernels.attention.interface import AttentionLayer, UnsupportedAttention
from raysgl.kernels.attention.kv_cache import KVCache
from raysgl.kernels.batch import ForwardBatch

logger = logging.getLogger(__name__)

LIBRARY = "_vllm_fa3_C.abi3.so"
MAX_SPLITS = 32
"""A row's keys are split over at most so many blocks; the kernel's own scheduler chooses for each row."""
UNSPLIT_TOKENS = 1024
"""A step of so many tokens fills the GPU with unsplit rows; splitting would cost memory for 32 partial results, and a merge."""


@cache
def find_library() -> Path | None:
    """FlashAttention 3's library: the standalone package's, else the one in the vllm distribution. None: not installed."""
    for module in ("vllm_flash_attn", "vllm"):
        spec = importlib.util.find_spec(module)
        for folder in (spec.submodule_search_locations or []) if spec else []:
            for path in (Path(folder) / LIBRARY, Path(folder) / "vllm_flash_attn" / LIBRARY):
                if path.is_file():
                    return path
    return None


@cache
def load_library() -> None:
    """Make `torch.ops._vllm_fa3_C` available."""
    path = find_library()
    torch.ops.load_library(str(path))
    logger.info("flash attention: FA3 from %s", path)


def refuses(device: torch.device, head_dim: int, dtype: torch.dtype, quantised: bool) -> str | None:
    """Why FA3 cannot serve such a model here, or None."""
    if quantised:
        return "does not take kv_cache_dtype fp8_e4m3; choose triton"
    if device.type != "cuda" or torch.cuda.get_device_capability(device)[0] != 9:
        return "needs a GPU of compute capability 9 (Hopper)"
    if dtype != torch.bfloat16:
        return f"takes bfloat16, but the model's dtype is {str(dtype).removeprefix('torch.')}"
    if head_dim not in (64, 128, 256):
        return f"takes head dims 64, 128 and 256, but the model's is {head_dim}"
    if find_library() is None:
        return "needs FlashAttention 3's kernels: install the vllm wheel (only vllm/vllm_flash_attn is used)"
    return None


@dataclass
class Part:
    """Rows of a step that go in one launch. tokens: theirs. metadata: what the kernel works out once a step for all layers of a kind
    (window, whether scores are capped)."""

    tokens: slice
    page_table_SP: torch.Tensor
    kv_lens_S: torch.Tensor
    starts_S1: torch.Tensor
    max_query: int
    max_kv: int
    splits: int
    metadata: dict[tuple[int | None, bool], torch.Tensor] = field(default_factory=dict)


class FlashAttnBackend:
    """See `AttentionBackend`.

    mixed: how a step with decode rows and prompts in it runs. together: in one launch, whose tiles are a prompt's. apart: in two, each
    with tiles and splits of its own. side_by_side: those two on two streams. spared_sms: how many SMs its kernels leave to others.
    """

    has_attend = True
    capturable = True

    def __init__(self, cache: KVCache, num_heads: int, windows: Iterable[int | None] = (None,)):
        if reason := refuses(cache.device, cache.head_dim, cache.dtype, cache.quantised):
            raise UnsupportedAttention(f"attention_backend flash_attn {reason}")
        load_library()
        self.cache = cache
        self.mixed: Literal["together", "apart", "side_by_side"] = "together"
        self.spared_sms = 0
        self._num_heads = num_heads
        self._keys = [layer[0] for layer in cache.data]
        self._values = [layer[1] for layer in cache.data]
        self._kinds = {(window, False) for window in windows}
        """Those met so far."""
        self._parts: list[Part] = []
        self._beside: torch.cuda.Stream | None = None

    def plan(self, batch: ForwardBatch) -> None:
        self.write_slots_T = batch.write_slots_T
        rows, decodes = len(batch.query_lens), batch.num_decode
        if self.mixed != "together" and 0 < decodes < rows:
            self._parts = [self._part(batch, 0, decodes, 0), self._part(batch, decodes, rows, decodes)]
        else:
            self._parts = [self._part(batch, 0, rows, 0)]

    def _part(self, batch: ForwardBatch, begin: int, end: int, first_token: int) -> Part:
        """Rows [begin, end); the part of all rows has all tokens of the batch, the last one those that are left."""
        starts_S1 = torch.zeros(end - begin + 1, dtype=torch.int32, device=self.cache.device)
        torch.cumsum(batch.query_lens_S[begin:end], 0, dtype=torch.int32, out=starts_S1[1:])
        last = end == len(batch.query_lens)
        tokens = slice(first_token, len(batch.token_ids_T) if last else end)
        part = Part(
            tokens=tokens,
            page_table_SP=batch.page_table_SP[begin:end],
            kv_lens_S=batch.kv_lens_S[begin:end],
            starts_S1=starts_S1,
            max_query=max(batch.query_lens[begin:end]),
            max_kv=max(batch.kv_lens[begin:end]),
            splits=1 if tokens.stop - tokens.start >= UNSPLIT_TOKENS else MAX_SPLITS,
        )
        part.metadata = {kind: self._schedule(part, *kind) for kind in self._kinds}
        return part

    def _schedule(self, part: Part, window: int | None, capped: bool) -> torch.Tensor:
        return torch.ops._vllm_fa3_C.get_scheduler_metadata(
            len(part.kv_lens_S),
            part.max_query,
            part.max_kv,
            self._num_heads,
            self.cache.num_kv_heads,
            self.cache.head_dim,
            self.cache.head_dim,
            self.cache.dtype,
            part.kv_lens_S,
            part.starts_S1,
            None,  # cu_seqlens_k
            None,  # cu_seqlens_k_new
            None,  # seqused_q
            None,  # leftpad_k
            self.cache.page_size,
            0,  # max_seqlen_k_new
            True,  # causal
            _left(window),
            0 if window is not None else -1,
            capped,
            part.splits,
            None,  # pack_gqa
            self.spared_sms,
        )

    def forward(self, q_TNH: torch.Tensor, k_TKH: torch.Tensor, v_TKH: torch.Tensor, layer: AttentionLayer) -> torch.Tensor:
        self.cache.write(layer.index, self.write_slots_T, k_TKH, v_TKH)
        return self.attend(q_TNH, layer)

    def attend(self, q_TNH: torch.Tensor, layer: AttentionLayer) -> torch.Tensor:
        """Attention alone, over keys and values that are in the cache already."""
        q_TNH = q_TNH.contiguous()
        if len(self._parts) == 1:
            return self._run(self._parts[0], q_TNH, layer, None)
        out_TNH = torch.empty_like(q_TNH)
        decode, prefill = self._parts
        if self.mixed == "apart":
            self._run(decode, q_TNH, layer, out_TNH)
        else:
            main = torch.cuda.current_stream(q_TNH.device)
            self._beside = self._beside or torch.cuda.Stream(q_TNH.device)
            self._beside.wait_stream(main)
            with torch.cuda.stream(self._beside):
                self._run(decode, q_TNH, layer, out_TNH)
        self._run(prefill, q_TNH, layer, out_TNH)
        if self.mixed == "side_by_side":
            main.wait_stream(self._beside)
        return out_TNH

    def _run(self, part: Part, q_TNH: torch.Tensor, layer: AttentionLayer, out_TNH: torch.Tensor | None) -> torch.Tensor:
        """Of the part's tokens, into their place of `out_TNH` if it is given."""
        kind = (layer.window, layer.soft_cap is not None)
        if kind not in part.metadata:
            self._kinds.add(kind)
            part.metadata[kind] = self._schedule(part, *kind)
        out = torch.ops._vllm_fa3_C.fwd(
            q_TNH[part.tokens],
            self._keys[layer.index],
            self._values[layer.index],
            None,  # k_new
            None,  # v_new
            None,  # q_v
            None if out_TNH is None else out_TNH[part.tokens],
            part.starts_S1,
            None,  # cu_seqlens_k
            None,  # cu_seqlens_k_new
            None,  # seqused_q
            part.kv_lens_S,
            part.max_query,
            part.max_kv,
            part.page_table_SP,
            None,  # kv_batch_idx
            None,  # leftpad_k
            None,  # rotary_cos
            None,  # rotary_sin
            None,  # seqlens_rotary
            None,  # q_descale
            None,  # k_descale
            None,  # v_descale
            layer.scale,
            True,  # causal
            _left(layer.window),
            0 if layer.window is not None else -1,
            layer.soft_cap or 0.0,
            True,  # rotary_interleaved
            part.metadata[kind],
            part.splits,
            None,  # pack_gqa
            self.spared_sms,
            None,  # s_aux
            1,  # cp_world_size
            0,  # cp_rank
            None,  # cp_tot_seqused_k
        )
        return out[0]


def _left(window: int | None) -> int:
    """FlashAttention counts the keys before the query's own."""
    return -1 if window is None else window - 1
