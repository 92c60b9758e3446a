"""Sequences that wait, and whose answer nobody wants any more by the time they could give one. No torch, no Ray.

What runs is not this module's business: the ingress, which has the client, ends it in time.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Iterator

from raysgl.engine.sequence import Sequence, Status

HOPE = 0.5
"""A prompt may take so much of the time that it should: rates are averages, and nobody is to be given up who could have made it."""


class Deadlines:
    """prefill_rate: tokens per second, 0 while not known; from it follows when a prompt must be begun. cached_tokens(sequence): how many
    of its tokens need not be computed."""

    def __init__(self, cached_tokens: Callable[[Sequence], int]) -> None:
        self.prefill_rate = 0.0
        self._cached_tokens = cached_tokens
        self._heap: list[tuple[float, int, Sequence]] = []  # (when to look at it, its arrival, it)

    def add(self, seq: Sequence) -> None:
        """A new one; does nothing if it may take as long as it likes."""
        if seq.deadline < math.inf:
            self._look_again(seq.deadline - self._seconds(len(seq.tokens)), seq)

    def missed(self, now: float) -> Iterator[Sequence]:
        """Those that wait, have had no token, and cannot make it. Each is named once; the caller ends it."""
        while self._heap and self._heap[0][0] <= now:
            _, _, seq = heapq.heappop(self._heap)
            if seq.status is Status.FINISHED or seq.num_output:
                continue
            if seq.status is Status.RUNNING:  # it may have to give its memory back, and wait again
                self._look_again(max(seq.deadline, now + 1.0), seq)
                continue
            latest = seq.deadline - self._seconds(len(seq.tokens) - self._cached_tokens(seq))
            if latest <= now:
                yield seq
            else:
                self._look_again(latest, seq)

    def _seconds(self, tokens: int) -> float:
        return HOPE * tokens / self.prefill_rate if self.prefill_rate else 0.0

    def _look_again(self, at: float, seq: Sequence) -> None:
        heapq.heappush(self._heap, (at, seq.arrival, seq))
