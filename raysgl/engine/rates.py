"""How fast the replica is, measured over its recent steps: what routing decisions are made of."""

from __future__ import annotations

SMOOTHING = 0.1
MIN_PREFILL = 32
"""Steps with fewer prompt tokens say little about the prefill rate."""


class Rates:
    """Exponential averages, tokens per second. 0 until measured.

    A mixed step's time is shared out: its decode rows are charged what a step of decodes alone takes.
    """

    def __init__(self) -> None:
        self.prefill = 0.0
        self.decode = 0.0
        self.step_seconds = 0.0
        self.ttft = 0.0
        self._last = 0.0
        self._decode_seconds = 0.0

    def resume(self, now: float) -> None:
        """The device was idle until now."""
        self._last = now

    def first_token(self, seconds: float) -> None:
        """A request's first token came so long after the request."""
        self.ttft = _average(self.ttft, seconds)

    def expected(self, num_prefill: int, num_decode: int) -> float | None:
        """Seconds that a step should take; None before any like it has been measured."""
        if num_prefill >= MIN_PREFILL:
            return num_prefill / self.prefill + self._decode_seconds if self.prefill else None
        return self.step_seconds or None

    def step(self, now: float, num_prefill: int, num_decode: int) -> None:
        """A step's result is in; `now` in seconds."""
        seconds, self._last = max(now - self._last, 1e-9), now
        self.step_seconds = _average(self.step_seconds, seconds)
        if num_decode and not num_prefill:
            self._decode_seconds = _average(self._decode_seconds, seconds)
            self.decode = _average(self.decode, num_decode / seconds)
        elif num_prefill >= MIN_PREFILL:
            own = seconds - (self._decode_seconds if num_decode else 0.0)
            if own > 0.1 * seconds:
                self.prefill = _average(self.prefill, num_prefill / own)


def _average(old: float, new: float) -> float:
    return new if old == 0.0 else old + SMOOTHING * (new - old)
