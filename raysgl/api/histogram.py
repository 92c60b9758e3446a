"""Counts by bucket, as plain numbers: they become Prometheus families when somebody asks."""

from __future__ import annotations

from bisect import bisect_left

E2E_BUCKETS = (0.1, 0.2, 0.4, 0.6, 0.8, 1, 2, 4, 6, 8, 10, 20, 40, 60, 80, 100, 200, 400, 600, 1200, 1800, 2400)
TTFT_BUCKETS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, *E2E_BUCKETS[:18])
"""SGLang's, and finer ones below 100 ms for small models."""
ITL_BUCKETS = (
    *(ms / 1000 for ms in (1, 2, 4, 6, 8, 10, 15, 20, 25, 30, 35, 40, 60, 80, 100, 200, 400, 600, 800)),
    *(1, 2, 4, 6, 8),
)
TOKEN_BUCKETS = tuple(2**i for i in range(21))
"""Of tokens in a prompt or an answer: 1 to a million."""


class Histogram:
    """`add` takes a value many times at once."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: tuple[float, ...]):
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def add(self, value: float, times: int = 1) -> None:
        self.counts[bisect_left(self.bounds, value)] += times
        self.sum += value * times

    def buckets(self) -> list[tuple[str, float]]:
        """(upper bound, values up to it), as Prometheus wants them."""
        total, result = 0, []
        for bound, count in zip((*map(str, map(float, self.bounds)), "+Inf"), self.counts):
            total += count
            result.append((bound, total))
        return result
