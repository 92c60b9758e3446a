"""What a start takes, phase by phase. No Ray, no torch.

A shard's phases follow from what it says it is doing: `Progress` texts begin a phase, or belong to the one under way.
"""

from __future__ import annotations

import time

PHASES = {
    "resolving the model": "resolve",
    "waiting for the other shards": "ranks",
    "loading weights": "weights",
    "loading weights from a replica": "weights",
    "making random weights": "weights",
    "measuring memory": "memory_profile",
    "allocating the KV cache": "kv_cache",
    "warming up": "warm_up",
    "capturing CUDA graphs": "cuda_graphs",
}
SHOWN_S = 0.05
"""Phases that took less are left out of what people read."""


class StartupClock:
    """seconds: of each phase that is over; one that comes again adds up. `began`: when the first did, as time.time()."""

    def __init__(self, phase: str, began: float):
        self.seconds: dict[str, float] = {}
        self._phase, self._since = phase, began

    def enter(self, phase: str) -> None:
        """The phase under way is over, and this one begins."""
        now = time.time()
        self.seconds[self._phase] = self.seconds.get(self._phase, 0.0) + now - self._since
        self._phase, self._since = phase, now

    def heard(self, text: str) -> None:
        """A `Progress` text."""
        phase = PHASES.get(text)
        if phase is not None and phase != self._phase:
            self.enter(phase)


def described(seconds: dict[str, float]) -> str:
    """For people: imports 2.1 s, weights 0.8 s, ..."""
    return ", ".join(f"{phase.replace('_', ' ')} {took:.1f} s" for phase, took in seconds.items() if took >= SHOWN_S)
