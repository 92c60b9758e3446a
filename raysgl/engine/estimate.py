"""How many more tokens will a sequence generate? Learned from those that finished.

Admission reserves room for the expected output, not for `max_new_tokens`: most requests stop long before, and pages kept
for tokens that never come are pages that nobody uses. Where the estimate was too low, sequences are retracted, and
the margin grows; it shrinks again while all goes well (SGLang's new-token ratio has the same shape, but does not learn lengths).
"""

from __future__ import annotations

from bisect import bisect_right, insort
from collections import deque

WINDOW = 512
"""Finished sequences remembered."""
FEW = 8
"""With fewer examples than this the prior is used."""
PRIOR = 0.7
"""Share of max_new_tokens expected before anything is known (SGLang's initial ratio)."""
PRIOR_CAP = 4096
MARGIN_GROWTH, MARGIN_DECAY, MARGIN_MAX = 1.3, 0.998, 4.0


class OutputLengthEstimator:
    """Expected remaining output, in tokens, given how many a sequence has generated so far."""

    def __init__(self, conservativeness: float = 1.0):
        self._conservativeness = conservativeness
        self._margin = 1.0
        self._recent: deque[int] = deque()
        self._sorted: list[int] = []
        self._suffix: list[int] | None = None

    def record(self, num_output: int) -> None:
        """A sequence finished by itself after so many tokens."""
        if len(self._recent) == WINDOW:
            oldest = self._recent.popleft()
            del self._sorted[bisect_right(self._sorted, oldest) - 1]
        self._recent.append(num_output)
        insort(self._sorted, num_output)
        self._suffix = None

    def retracted(self) -> None:
        """The estimate was too low: be more careful."""
        self._margin = min(self._margin * MARGIN_GROWTH, MARGIN_MAX)

    def stepped(self) -> None:
        """A step ran without a retraction."""
        self._margin = max(1.0, self._margin * MARGIN_DECAY)

    def remaining(self, generated: int, limit: int) -> int:
        """Expected tokens still to come of a sequence that has `generated` and may have `limit` more."""
        if limit <= 0:
            return 0
        longer = len(self._sorted) - (first := bisect_right(self._sorted, generated))
        if longer >= FEW:
            expected = self._suffix_sums()[first] / longer - generated
        elif len(self._sorted) >= FEW:
            expected = max(generated, 1) * 0.5  # past nearly all we have seen: as heavy-tailed lengths go
        else:
            expected = PRIOR * min(limit, PRIOR_CAP)
        return min(limit, int(expected * self._margin * self._conservativeness) + 1)

    def _suffix_sums(self) -> list[int]:
        if self._suffix is None:
            sums, total = [0] * len(self._sorted), 0
            for i in range(len(self._sorted) - 1, -1, -1):
                total += self._sorted[i]
                sums[i] = total
            self._suffix = sums
        return self._suffix
