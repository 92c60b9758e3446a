"""Weights on their way to the L2 cache while the kernel in front still runs, or the link is waited for."""

from __future__ import annotations

import triton
import triton.language as tl

from raysgl.kernels.triton import runtime

INTERPRETED = tl.constexpr(runtime.INTERPRETED)


@triton.jit
def prefetch_rows(rows_O, inputs, COUNT: tl.constexpr):
    """Ask for the first COUNT weights of each row (two bytes each: 64 to a line), given pointers to the rows' begins."""
    line = tl.minimum(tl.arange(0, COUNT // 64) * 64, inputs - 1)
    _prefetch(rows_O[:, None] + line[None, :])


@triton.jit
def prefetch_lines(weight_ptr, lines, program, PROGRAMS: tl.constexpr):
    """One of PROGRAMS programs asks for its share of so many lines of 128 bytes."""
    for begin in range(program * 256, lines, PROGRAMS * 256):
        _prefetch(weight_ptr + tl.minimum(begin + tl.arange(0, 256), lines - 1) * 64)


@triton.jit
def _prefetch(pointers):
    if not INTERPRETED:
        tl.inline_asm_elementwise(
            "prefetch.global.L2 [$1]; mov.u32 $0, 0;", "=r,l", [pointers.to(tl.int64, bitcast=True)], dtype=tl.int32, is_pure=False,
            pack=1,
        )  # fmt: skip
