"""Who gives memory or place back: to a request of much higher priority, or because there is not enough for all. No torch, no Ray."""

from __future__ import annotations

from collections.abc import Iterable

from raysgl.engine.sequence import Sequence

GAP = 10
"""Points of priority between a request that waits and one that runs, from which on the first interrupts the second (SGLang's)."""


def victims(running: Iterable[Sequence], urgent: Sequence) -> list[Sequence]:
    """Those that may be interrupted, in the order to do so: the least important first, of equals the one that came last."""
    found = [seq for seq in running if seq.priority <= urgent.priority - GAP]
    return sorted(found, key=lambda seq: (seq.priority, -seq.turn, -seq.arrival))


def last_of(running: Iterable[Sequence]) -> Sequence:
    """The one whose turn came last. So the one whose turn came first is never the victim, and all get on in the end."""
    return max(running, key=lambda seq: (seq.turn, seq.arrival))
