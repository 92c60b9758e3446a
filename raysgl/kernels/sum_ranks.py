"""The sum over tensor-parallel ranks through memory that they share; where they share none, the caller's NCCL or gloo does it."""

from __future__ import annotations

from typing import Protocol

import torch

MOST_SENT = 2**23
"""Elements that one of two ranks sends. More are NCCL's: of two H100s, 256 rows of 4096 take it 30 us with the norm, and 13 us here
(`python -m raysgl.bench.all_reduce`)."""
MOST_SENT_OF_MORE = 5 * 2**19
"""The same of more ranks, among which NCCL splits the addition: of four H200s, 128 rows of 4096 take it 20 us and 19 here, 256 rows 30 and 32."""


class Peers(Protocol):
    """Device memory of `size` ranks: `own` of this one, and the `addresses` (int64, on the device) of everyone's."""

    rank: int
    size: int
    own: torch.Tensor
    addresses: torch.Tensor


def most_rows(ranks: int, dim: int) -> int:
    most = MOST_SENT if ranks == 2 else min(MOST_SENT, MOST_SENT_OF_MORE)
    return most // (dim * (ranks - 1))


def takes(part_TD: torch.Tensor, peers: Peers | None) -> bool:
    """Whether `sum_ranks` can, and is the faster one."""
    return peers is not None and len(part_TD) <= most_rows(peers.size, part_TD.shape[1])


def sum_ranks(
    part_TD: torch.Tensor,
    peers: Peers,
    residual_TD: torch.Tensor | None = None,
    weight_D: torch.Tensor | None = None,
    eps: float = 0.0,
    next_weight: torch.Tensor | None = None,
) -> torch.Tensor:
    """See `raysgl.kernels.triton.all_reduce`, where the kernels are."""
    from raysgl.kernels.triton import all_reduce

    return all_reduce.sum_ranks(part_TD, peers, residual_TD, weight_D, eps, next_weight)
