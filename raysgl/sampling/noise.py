"""Random numbers that depend on nothing but the sequence's seed and how many tokens it has had.

Counter based, so there is no generator state to keep: the same seed gives the same text alone, in any batch, after a
retraction, and when another replica goes on with it. Both inputs are known on the host, and a step needs one number per row,
so they are made there: cheaper than a dozen kernels, and the same on every device.
"""

from __future__ import annotations

import numpy as np

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def _mix(x: np.ndarray) -> np.ndarray:
    """The finaliser of SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def uniforms(seeds_L: np.ndarray, indices_L: np.ndarray) -> np.ndarray:
    """[L] float64 in [0, 1): row i's number for output token `indices_L[i]` of seed `seeds_L[i]` (both int64)."""
    # Neighbouring seeds (the n sequences of a request) must not be shifted copies of each other: the seed is mixed first.
    start = _mix(seeds_L.astype(np.uint64) + _GOLDEN)
    bits = _mix(start + (indices_L.astype(np.uint64) + np.uint64(1)) * _GOLDEN)
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53
