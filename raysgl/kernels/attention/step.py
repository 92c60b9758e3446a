"""Two backends as one: steps of nothing but decode rows go to one, steps with prompts in them to the other."""

from __future__ import annotations

import torch

from raysgl.kernels.attention.interface import AttentionBackend, AttentionLayer
from raysgl.kernels.attention.kv_cache import KVCache
from raysgl.kernels.batch import ForwardBatch


class StepAttention:
    """An `AttentionBackend` made of `prefill` and `decode`, which may be the same object and share the cache. why: for people."""

    def __init__(self, prefill: AttentionBackend, decode: AttentionBackend, cache: KVCache, why: str = ""):
        self.prefill, self.decode, self.why = prefill, decode, why
        self.cache = cache
        self.capturable = prefill.capturable and decode.capturable
        self._current = prefill

    def plan(self, batch: ForwardBatch) -> None:
        self._current = self.decode if batch.num_decode == len(batch.query_lens) else self.prefill
        self._current.plan(batch)
        self.write_slots_T = batch.write_slots_T

    @property
    def has_attend(self) -> bool:
        """Of the step that is planned."""
        return self._current.has_attend

    def forward(self, q_TNH: torch.Tensor, k_TKH: torch.Tensor, v_TKH: torch.Tensor, layer: AttentionLayer) -> torch.Tensor:
        return self._current.forward(q_TNH, k_TKH, v_TKH, layer)

    def attend(self, q_TNH: torch.Tensor, layer: AttentionLayer) -> torch.Tensor:
        """Where `has_attend`: attention alone, over keys and values that are in the cache already."""
        return self._current.attend(q_TNH, layer)
