"""Tells an engine that hangs from one that is busy with something long. No torch, no Ray."""

from __future__ import annotations

from dataclasses import dataclass

FACTOR = 10.0
"""A step may take so many times what it should: rates are averages, and attention to a long context is slower than they say."""
UNKNOWN_S = 300.0
"""What a step may take of which nothing is known yet: a first step may compile kernels for a minute."""
GLANCE_S = 5.0
"""The most that the time between two looks counts: who could not look did not see anything stand still."""


@dataclass(frozen=True)
class Vitals:
    """steps: results taken in so far. idle: nothing to do, or busy with something else than steps. expected_s: what the steps under way
    should take; None where that is not known."""

    steps: int
    idle: bool
    expected_s: float | None = 0.0


class Watchdog:
    """Looks at an engine's vitals about once a second. patience_s: how long a normal step may take."""

    def __init__(self, patience_s: float):
        self._patience_s = patience_s
        self._last = Vitals(-1, True)
        self._looked_at: float | None = None
        self._still_s = 0.0

    def look(self, vitals: Vitals | None, now: float) -> str | None:
        """Why the engine must be replaced, or None. vitals: None if it did not answer. now: seconds, monotonic."""
        since = 0.0 if self._looked_at is None else min(now - self._looked_at, GLANCE_S)
        self._looked_at = now
        if vitals is not None and (vitals.idle or vitals.steps != self._last.steps):
            self._last, self._still_s = vitals, 0.0
            return None
        if vitals is not None:
            self._last = vitals
        self._still_s += since
        if self._still_s <= self._limit_s():
            return None
        what = "its engine does not answer" if vitals is None else "its engine has work, but no step ends"
        return f"{what}; so it has been for {self._still_s:.0f} s"

    def _limit_s(self) -> float:
        expected = self._last.expected_s
        return max(self._patience_s, UNKNOWN_S if expected is None else FACTOR * expected)
