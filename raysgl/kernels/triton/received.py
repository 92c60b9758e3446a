"""The sum of two parts, of which the other rank sent one piece by piece, the residual addition and RMSNorm: one launch for all pieces.

See `raysgl.kernels.sent_sums`. Programs wait for their piece's flag, and are so few that what the flags wait for finds room beside them.
Legend: `raysgl.kernels.batch`.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from raysgl.kernels.triton.runtime import num_sms

WARPS_PER_SM = 16
"""A quarter of an SM's threads. At 16 elements each (`ELEMENTS`) they have up to 64 registers, which leaves half of an SM's. More programs than fit at a time, or
fuller ones, would wait for ever: the other rank's flag is written by a kernel that then finds no room beside its own programs that wait."""
ELEMENTS = 16 * 32
"""Of a row, for one warp."""


@triton.jit(do_not_specialize=["call", "rows", "piece", "pieces"])  # one kernel for steps of any length
def _received_kernel(
    x_ptr, received_ptr, flags_ptr, residual_ptr, weight_ptr, out_ptr, rows, piece, pieces, dim, eps, call, BLOCK_D: tl.constexpr
):  # fmt: skip
    d = tl.arange(0, BLOCK_D)
    inside = d < dim
    weight = tl.load(weight_ptr + d, mask=inside, other=0.0).to(tl.float32)
    for index in range(pieces):
        seen = tl.atomic_add(flags_ptr + index, 0, sem="acquire", scope="sys")
        while seen - call < 0:
            seen = tl.atomic_add(flags_ptr + index, 0, sem="acquire", scope="sys")
        end = (index + 1) * piece
        if index == pieces - 1:
            end = rows
        for row in range(index * piece + tl.program_id(0), end, tl.num_programs(0)):
            at = tl.cast(row, tl.int64) * dim + d
            x = tl.load(x_ptr + at, mask=inside, other=0.0).to(tl.float32)
            x += tl.load(received_ptr + at, mask=inside, other=0.0, volatile=True).to(tl.float32)
            x += tl.load(residual_ptr + at, mask=inside, other=0.0).to(tl.float32)
            rounded = x.to(residual_ptr.dtype.element_ty)
            tl.store(residual_ptr + at, rounded, mask=inside)
            x = rounded.to(tl.float32)
            scale = tl.rsqrt(tl.sum(x * x, axis=0) / dim + eps)
            tl.store(out_ptr + at, (x * scale * weight).to(out_ptr.dtype.element_ty), mask=inside)


def add_received(
    part_TD: torch.Tensor,
    received_TD: torch.Tensor,
    flags: torch.Tensor,
    call: int,
    piece: int,
    pieces: int,
    residual_TD: torch.Tensor,
    weight_D: torch.Tensor,
    eps: float,
) -> torch.Tensor:
    """Add both parts to the residual stream in place; returns that normalised. Everything is contiguous.

    Piece i, `piece` rows from row i * piece on, the last all that are left, is there when flags[i] (int32) is `call` or a later one.
    """
    rows, dim = part_TD.shape
    out_TD = torch.empty_like(part_TD)
    block = triton.next_power_of_2(dim)
    warps = min(32, max(4, block // ELEMENTS))
    _received_kernel[(min(rows, num_sms(part_TD.device) * WARPS_PER_SM // warps),)](
        part_TD, received_TD, flags, residual_TD, weight_D, out_TD, rows, piece, pieces, dim, eps, call,
        BLOCK_D=block, num_warps=warps,
    )  # fmt: skip
    return out_TD
