"""FlashAttention over the paged cache: vllm-flash-attn's variable-length kernels (FA3 on Hopper).

Decode and prefill rows go in one call. (In calls of their own, one after the other or on two streams, they took 0.99 to 1.13 of its time
on an H100, with 32 to 256 decode rows beside 512 to 8192 prompt tokens.) Nothing is planned on the host: lengths and page tables are read
on the device, so a step may be captured in a CUDA graph. The PyPI package `vllm-flash-attn` stopped at torch 2.4; its kernels live on inside the `vllm` wheel, on
torch's stable ABI, and are loaded from there without importing vLLM.
"""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Iterable
from functools import cache
from pathlib import Path

import torch

from raysgl.kernels.attention.interface import AttentionLayer, UnsupportedAttention
from raysgl.kernels.attention.kv_cache import KVCache
from raysgl.kernels.batch import ForwardBatch

logger = logging.getLogger(__name__)

LIBRARY = "_vllm_fa3_C.abi3.so"
MAX_SPLITS = 32
"""A row's keys are split over at most so many blocks; the kernel's own scheduler chooses for each row."""
MOST_DECODE_ROWS = 4096
"""Where the rows of a decode step begin need not be worked out for up to so many."""
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


class FlashAttnBackend:
    """See `AttentionBackend`. spared_sms: how many SMs its kernels leave to others, from the next `plan` on."""

    has_attend = True
    capturable = True

    def __init__(self, cache: KVCache, num_heads: int, windows: Iterable[int | None] = (None,)):
        if reason := refuses(cache.device, cache.head_dim, cache.dtype, cache.quantised):
            raise UnsupportedAttention(f"attention_backend flash_attn {reason}")
        load_library()
        self.cache = cache
        self.spared_sms = 0
        self._num_heads = num_heads
        self._one_each = torch.arange(MOST_DECODE_ROWS + 1, dtype=torch.int32, device=cache.device)
        self._keys = [layer[0] for layer in cache.data]
        self._values = [layer[1] for layer in cache.data]
        self._kinds = {(window, False) for window in windows}
        """(window, whether scores are capped) of the layers met so far."""
        self._metadata: dict[tuple[int | None, bool], torch.Tensor] = {}

    def plan(self, batch: ForwardBatch) -> None:
        self.write_slots_T = batch.write_slots_T
        self._page_table_SP = batch.page_table_SP
        self._kv_lens_S = batch.kv_lens_S
        rows = len(batch.query_lens)
        if batch.num_decode == rows < len(self._one_each):
            self._starts_S = self._one_each[: rows + 1]
        else:
            self._starts_S = torch.zeros(rows + 1, dtype=torch.int32, device=self.cache.device)
            torch.cumsum(batch.query_lens_S, 0, dtype=torch.int32, out=self._starts_S[1:])
        self._max_query = max(batch.query_lens)
        self._max_kv = max(batch.kv_lens)
        self._splits = 1 if len(batch.token_ids_T) >= UNSPLIT_TOKENS else MAX_SPLITS
        self._rows = rows
        self._metadata = {kind: self._schedule(*kind) for kind in self._kinds}

    def _schedule(self, window: int | None, capped: bool) -> torch.Tensor:
        """What the kernel works out once a step for all layers of a kind."""
        return torch.ops._vllm_fa3_C.get_scheduler_metadata(
            self._rows,
            self._max_query,
            self._max_kv,
            self._num_heads,
            self.cache.num_kv_heads,
            self.cache.head_dim,
            self.cache.head_dim,
            self.cache.dtype,
            self._kv_lens_S,
            self._starts_S,
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
            self._splits,
            None,  # pack_gqa
            self.spared_sms,
        )

    def forward(self, q_TNH: torch.Tensor, k_TKH: torch.Tensor, v_TKH: torch.Tensor, layer: AttentionLayer) -> torch.Tensor:
        self.cache.write(layer.index, self.write_slots_T, k_TKH, v_TKH)
        return self.attend(q_TNH, layer)

    def attend(self, q_TNH: torch.Tensor, layer: AttentionLayer) -> torch.Tensor:
        """Attention alone, over keys and values that are in the cache already."""
        kind = (layer.window, layer.soft_cap is not None)
        if kind not in self._metadata:
            self._kinds.add(kind)
            self._metadata[kind] = self._schedule(*kind)
        out = torch.ops._vllm_fa3_C.fwd(
            q_TNH.contiguous(),
            self._keys[layer.index],
            self._values[layer.index],
            None,  # k_new
            None,  # v_new
            None,  # q_v
            None,  # out
            self._starts_S,
            None,  # cu_seqlens_k
            None,  # cu_seqlens_k_new
            None,  # seqused_q
            self._kv_lens_S,
            self._max_query,
            self._max_kv,
            self._page_table_SP,
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
            self._metadata[kind],
            self._splits,
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
