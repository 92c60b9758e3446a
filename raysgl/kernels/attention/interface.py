"""What a model and a runner know of an attention backend."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import torch

from raysgl.kernels.batch import ForwardBatch


@dataclass(frozen=True)
class AttentionLayer:
    """One layer's attention: which part of the cache is its own, and how it attends.

    A query at position p sees keys at positions above p - `window` (None: all) and at most p. soft_cap: scores x become
    soft_cap * tanh(x / soft_cap), after `scale` (Gemma 2; Team Gemma 2024).
    """

    index: int
    scale: float
    window: int | None = None
    soft_cap: float | None = None


class UnsupportedAttention(ValueError):
    """A backend cannot serve this model, cache or device; the message says which setting to change."""


class AttentionBackend(Protocol):
    """Constructed with (cache, num_heads, windows): the rank's KVCache and query heads, and all windows its layers use.

    Raises `UnsupportedAttention` for what it cannot serve.
    has_attend: it has `attend(q_TNH, layer)`, which is `forward` for keys and values that are in the cache already (`cache`, at
    `write_slots_T`). capturable: it plans on the device alone, so any step may be captured in a CUDA graph.
    """

    has_attend: bool
    capturable: bool

    def plan(self, batch: ForwardBatch) -> None:
        """Prepare what all layers of this step share. Call it before `forward`, once per step."""

    def forward(self, q_TNH: torch.Tensor, k_TKH: torch.Tensor, v_TKH: torch.Tensor, layer: AttentionLayer) -> torch.Tensor:
        """Write this step's keys and values to the cache, then attend over each row's pages. Returns o_TNH.

        Query head n reads key/value head n // (N / K).
        """


class GraphAttention(AttentionBackend, Protocol):
    """Attention of the decode rows of one CUDA graph. `plan` and what follows are captured; `prepare` is not."""

    def prepare(self, kv_lens_S: np.ndarray) -> None:
        """Plan for rows of these lengths. Before the capture, and before each replay, in the stream of the replay."""


@runtime_checkable
class HostPlanned(Protocol):
    """A backend that plans with the lengths that the host knows: not capturable itself, but its decode steps are, in this way."""

    def for_graph(self, rows: int) -> GraphAttention:
        """For a graph of so many rows. Graphs of one backend share memory, so their replays must follow one another."""
