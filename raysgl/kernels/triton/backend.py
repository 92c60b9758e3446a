"""The attention backend `triton`: work lists once a step, then decode rows and prefill rows in launches of their own."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from raysgl.kernels.attention.interface import AttentionLayer, UnsupportedAttention
from raysgl.kernels.attention.kv_cache import KVCache
from raysgl.kernels.batch import ForwardBatch
from raysgl.kernels.triton.cascade import CascadePlan, cascade_decode, plan_cascade
from raysgl.kernels.triton.decode import DecodePlan, paged_decode, plan_decode
from raysgl.kernels.triton.prefill import PrefillPlan, paged_prefill, plan_prefill


def refuses(device: torch.device, head_dim: int, dtype: torch.dtype, quantised: bool) -> str | None:
    """Why these kernels cannot serve such a model here, or None."""
    if quantised and device.type == "cuda" and torch.cuda.get_device_capability(device) < (8, 9):
        return "needs a GPU of compute capability 8.9 or later for kv_cache_dtype fp8_e4m3"
    return None


class TritonBackend:
    """See `AttentionBackend`. All planning is on the device: a step of one shape may be captured in a CUDA graph."""

    has_attend = True
    capturable = True

    def __init__(self, cache: KVCache, num_heads: int, windows: Iterable[int | None] = (None,)):
        if reason := refuses(cache.device, cache.head_dim, cache.dtype, cache.quantised):
            raise UnsupportedAttention(f"attention_backend triton {reason}")
        self.cache = cache
        self._group = num_heads // cache.num_kv_heads
        self._windows = tuple(set(windows))
        self._keys = [layer[0] for layer in cache.data]
        self._values = [layer[1] for layer in cache.data]
        self._decode: dict[int | None, DecodePlan] = {}
        self._cascade: CascadePlan | None = None
        self._prefill: PrefillPlan | None = None

    def plan(self, batch: ForwardBatch) -> None:
        rows, decodes = len(batch.query_lens), batch.num_decode
        self.write_slots_T = batch.write_slots_T
        self._page_table_SP = batch.page_table_SP
        self._kv_lens_S = batch.kv_lens_S
        self._num_decode = decodes
        self._cascade = self._prefill = None
        if decodes:
            lens = batch.kv_lens_S[:decodes]
            self._decode = {window: plan_decode(lens, self.cache.num_kv_heads, window) for window in self._windows}
        if rows > decodes:
            tokens = batch.token_ids_T.shape[0] - decodes
            self._prefill = plan_prefill(batch.query_lens_S[decodes:], batch.kv_lens_S[decodes:], tokens, self._group)

    def plan_cascade(self, group_S: torch.Tensor, shared_pages_J: torch.Tensor) -> None:
        """After `plan`: decode rows of a group have their first pages in common, and layers without a window read them once.

        group_S: int32, one for each decode row, -1 for none. shared_pages_J: int32, full pages that the group's rows share.
        """
        self._cascade = plan_cascade(
            group_S,
            shared_pages_J,
            self._kv_lens_S[: self._num_decode],
            self.cache.page_size,
            self._group,
            self.cache.num_kv_heads,
        )

    def forward(self, q_TNH: torch.Tensor, k_TKH: torch.Tensor, v_TKH: torch.Tensor, layer: AttentionLayer) -> torch.Tensor:
        self.cache.write(layer.index, self.write_slots_T, k_TKH, v_TKH)
        return self.attend(q_TNH, layer)

    def attend(self, q_TNH: torch.Tensor, layer: AttentionLayer) -> torch.Tensor:
        """Attention alone, over keys and values that are in the cache already."""
        keys, values, table = self._keys[layer.index], self._values[layer.index], self._page_table_SP
        decodes, scale, cap = self._num_decode, layer.scale, layer.soft_cap
        scales = self.cache.layer_scales(layer.index)
        parts = []
        if decodes:
            q_SNH, rows = q_TNH[:decodes], table[:decodes]
            if self._cascade is not None and layer.window is None:
                parts.append(cascade_decode(q_SNH, keys, values, rows, self._cascade, scale, cap, scales_2K=scales))
            else:
                plan = self._decode[layer.window]
                parts.append(paged_decode(q_SNH, keys, values, rows, plan, scale, cap, scales_2K=scales))
        if self._prefill is not None:
            q_tNH, rows = q_TNH[decodes:], table[decodes:]
            parts.append(paged_prefill(q_tNH, keys, values, rows, self._prefill, scale, layer.window, cap, scales_2K=scales))
        return parts[0] if len(parts) == 1 else torch.cat(parts)
