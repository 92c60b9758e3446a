"""Two backends as one: steps of nothing but decode rows go to one, steps with prompts in them to the other."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from raysgl.kernels.attention.interface import AttentionBackend, AttentionLayer
from raysgl.kernels.attention.kv_cache import KVCache
from raysgl.kernels.batch import ForwardBatch


@dataclass(frozen=True)
class Choice:
    """why: for people. at: (rows, backend) where decode steps of about so many rows should have one of their own."""

    backend: str
    why: str
    at: tuple[tuple[int, str], ...] = ()

    def __str__(self) -> str:
        return f"{self.backend} ({self.why})"


class StepAttention:
    """An `AttentionBackend` made of `prefill` and, by name, those that `decode` speaks of; they share the cache. why: for people."""

    def __init__(
        self, prefill: AttentionBackend, backends: dict[str, AttentionBackend], decode: Choice, cache: KVCache, why: str
    ):
        self.prefill, self.cache, self.why = prefill, cache, why
        self._backends, self._decode = backends, decode
        self._current = prefill

    def decode_for(self, rows: int) -> AttentionBackend:
        """For decode steps of so many rows: by the number nearest to it that was measured, as ratios go."""
        name = self._decode.backend
        if self._decode.at:
            _, name = min(self._decode.at, key=lambda at: abs(math.log(at[0] / rows)))
        return self._backends[name]

    @property
    def capturable(self) -> bool:
        """Of the step that is planned, like `has_attend`."""
        return self._current.capturable

    def plan(self, batch: ForwardBatch) -> None:
        rows = len(batch.query_lens)
        self._current = self.decode_for(rows) if batch.num_decode == rows else self.prefill
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
