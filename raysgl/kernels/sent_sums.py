"""Large sums over two ranks, hidden behind the matrix product that makes their parts.

The product is cut by rows. While one piece is computed, a copy engine brings the one before it to the other rank: no SM is taken from the
product, as NCCL's kernels would. (A product of persistent programs, one on each SM, ends as late as those of its programs that wait for
NCCL's SMs.) What follows, residual addition and RMSNorm, adds up both parts. More than two ranks would send each part more than once.

A rank that begins its call n + 2 has seen the other begin n + 1, so what was sent at n has been read: two places suffice.
Legend: `raysgl.kernels.batch`; O output features.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import pairwise

import torch

from raysgl.kernels.sum_ranks import Peers

PIECE = 2**23
"""Elements of a piece: 2048 rows of 4096, 256 tiles of 128 x 256 of the product, nearly two for each SM of an H100."""
MOST_ROWS = 16384
"""Memory is kept for so many: 512 MiB of 8192 half-type elements each."""
MOST_DIM = 4096
"""Of a row. With 8192 two H200s waited for each other for ever (70B shape, memory profile), for a reason not yet known: NCCL's then."""
FLAGS = 1024
"""Bytes of flags, one for each piece, in front of the two places."""


def memory(rows: int, dim: int) -> int:
    """Bytes of every rank, for sums of up to so many rows of a half type."""
    return FLAGS + 2 * rows * dim * 2


def pieces(rows: int, dim: int) -> list[int]:
    """Where each piece begins, and the end of the last, which may have half as many rows again as the others, or fewer."""
    size = max(1, PIECE // dim)
    return [*range(0, max(1, rows - size // 2), size), rows]


class SentSums:
    """One rank's end of all such sums, of up to `rows` rows. All ranks make the same, in the same order, outside CUDA graphs."""

    def __init__(self, peers: Peers, opened: torch.UntypedStorage, rows: int, dim: int, dtype: torch.dtype):
        """opened: the other rank's memory, at least `memory(rows, dim)` bytes."""
        self.rows = rows
        self._peers, self._calls = peers, 0
        device = peers.own.device
        theirs = torch.empty(0, dtype=torch.uint8, device=device).set_(opened, 0, (len(peers.own),), (1,))
        end = memory(rows, dim)
        self._received, self._sent = (whole[FLAGS:end].view(dtype).view(2, rows, dim) for whole in (peers.own, theirs))
        self._flags, self._tell = (whole[:FLAGS].view(torch.int32) for whole in (peers.own, theirs))
        self._stream = torch.cuda.Stream(device, priority=-1) if device.type == "cuda" else None

    def begin(self, rows: int, dim: int, dtype: torch.dtype, product: Callable[[int, int, torch.Tensor], None]) -> SentPart:
        """product(begin, end, out_TO) computes these rows of this rank's part."""
        self._calls += 1
        part_TO = torch.empty((rows, dim), dtype=dtype, device=self._peers.own.device)
        sent = SentPart(self, self._calls, pieces(rows, dim), part_TO)
        place = self._sent[self._calls % 2]
        for index, (begin, end) in enumerate(pairwise(sent.cuts)):
            product(begin, end, part_TO[begin:end])
            if self._stream is not None:
                self._stream.wait_stream(torch.cuda.current_stream(part_TO.device))
            with torch.cuda.stream(self._stream) if self._stream is not None else nullcontext():
                place[begin:end].copy_(part_TO[begin:end], non_blocking=True)
                self._tell[index : index + 1].fill_(self._calls)
        return sent

    def finish(self, sent: SentPart, residual_TO: torch.Tensor, weight_O: torch.Tensor, eps: float) -> torch.Tensor:
        from raysgl.kernels.triton.received import add_received

        out_TO = add_received(
            sent.part_TO,
            self._received[sent.call % 2],
            self._flags,
            sent.call,
            sent.cuts[1],
            len(sent.cuts) - 1,
            residual_TO,
            weight_O,
            eps,
        )
        if self._stream is not None:  # the part may be read until then, and its memory given to others afterwards
            torch.cuda.current_stream(out_TO.device).wait_stream(self._stream)
        return out_TO


@dataclass(frozen=True)
class SentPart:
    """This rank's part of a sum, on its way to the other rank, cut as `pieces` says."""

    sums: SentSums
    call: int
    cuts: list[int]
    part_TO: torch.Tensor

    def add_rms_norm(self, residual_TO: torch.Tensor, weight_O: torch.Tensor, eps: float) -> torch.Tensor:
        """Add the sum of both parts to the residual stream in place; returns that normalised."""
        return self.sums.finish(self, residual_TO, weight_O, eps)
