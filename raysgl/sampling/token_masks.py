"""Which tokens some rows of a step may sample."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class TokenMasks:
    """rows_R: indices of rows that sample, ascending. bits_RW: int32; bit i of a row says that token i is allowed (little-endian)."""

    rows_R: np.ndarray
    bits_RW: np.ndarray
