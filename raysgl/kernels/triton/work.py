"""Work lists of attention: which program attends which keys, decided on the device.

A launch's grid may not depend on lengths that change between replays of a captured graph, so every launch has a fixed number of
programs, and a list in device memory says what each does. Long rows are cut into chunks so that all programs have about
equal work: with `extra` more programs than units, chunks of total / extra tokens always suffice, since
sum(ceil(len / chunk)) <= units + total / chunk. The list is made once a step and serves all layers.

Legend: `raysgl.kernels.batch`; U units (rows, tiles of a shared prefix), W items of work.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from raysgl.kernels.triton.runtime import launch_options

ALIGN = 64
"""Chunks are multiples of this many tokens: whole blocks of every kernel's loop."""


@dataclass
class WorkList:
    """items: int32 [5, W]: the unit, its first token and the token after its last, where its result goes, whether it is all of
    its unit's work. first_U1: int32 [U + 1], each unit's first item, and how many there are. base_U: int32, where
    the results of a unit's first item go; its next items' follow, `weight` apart.
    """

    items: torch.Tensor
    first_U1: torch.Tensor
    base_U: torch.Tensor

    @property
    def capacity(self) -> int:
        return self.items.shape[1]


@triton.jit(do_not_specialize=["units", "window", "extra", "chunk", "capacity"])
def _list_work_kernel(
    end_ptr, begin_ptr, weight_ptr, items_ptr, first_ptr, base_ptr, units, window, extra, chunk, capacity,
    BLOCK_U: tl.constexpr, HAS_BEGIN: tl.constexpr, HAS_WEIGHT: tl.constexpr, WINDOW: tl.constexpr, FIXED: tl.constexpr,
    EMPTY: tl.constexpr, ALIGN: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    # One program per unit. Each sums over all units again, which costs less than a second launch.
    unit = tl.program_id(0)
    u = tl.arange(0, BLOCK_U)
    if PDL:
        gdc_wait()
        gdc_launch_dependents()
    ends = tl.load(end_ptr + u, mask=u < units, other=0)
    begins = tl.zeros([BLOCK_U], tl.int32)
    if HAS_BEGIN:
        begins = tl.load(begin_ptr + u, mask=u < units, other=0)
    elif WINDOW:
        begins = tl.maximum(ends - window, 0)
    weights = tl.full([BLOCK_U], 1, tl.int32)
    if HAS_WEIGHT:
        weights = tl.load(weight_ptr + u, mask=u < units, other=0)
    lens = tl.maximum(ends - begins, 0)
    if not FIXED:
        share = tl.cdiv(tl.sum(lens, axis=0), extra)
        chunk = tl.cdiv(tl.maximum(share, chunk), ALIGN) * ALIGN
    counts = (lens + chunk - 1) // chunk
    if EMPTY:
        counts = tl.where(u < units, tl.maximum(counts, 1), 0)
    before = u < unit
    first = tl.sum(tl.where(before, counts, 0), axis=0)
    if FIXED:
        base = tl.sum(tl.where(before, lens, 0), axis=0)
    else:
        base = tl.sum(tl.where(before, counts * weights, 0), axis=0)
    tl.store(first_ptr + unit, first)
    tl.store(base_ptr + unit, base)
    if unit == 0:
        tl.store(first_ptr + units, tl.sum(counts, axis=0))

    mine = u == unit
    count = tl.sum(tl.where(mine, counts, 0), axis=0)
    weight = tl.sum(tl.where(mine, weights, 0), axis=0)
    begin = tl.sum(tl.where(mine, begins, 0), axis=0)
    end = tl.sum(tl.where(mine, ends, 0), axis=0)
    whole = count == 1
    if HAS_BEGIN:  # what lies before is somebody else's work
        whole = whole & (begin == 0)
    for start in range(0, count, 32):
        j = start + tl.arange(0, 32)
        inside = (j < count) & (first + j < capacity)
        item = items_ptr + first + j
        stride = chunk if FIXED else weight
        tl.store(item, tl.zeros([32], tl.int32) + unit, mask=inside)
        tl.store(item + capacity, begin + j * chunk, mask=inside)
        tl.store(item + 2 * capacity, tl.minimum(begin + (j + 1) * chunk, end), mask=inside)
        tl.store(item + 3 * capacity, base + j * stride, mask=inside)
        tl.store(item + 4 * capacity, tl.zeros([32], tl.int32) + whole.to(tl.int32), mask=inside)


def list_work(
    end_U: torch.Tensor,
    capacity: int,
    *,
    begin_U: torch.Tensor | None = None,
    weight_U: torch.Tensor | None = None,
    window: int | None = None,
    extra: int = 1,
    chunk: int = ALIGN,
    fixed: bool = False,
    empty: bool = False,
) -> WorkList:
    """Cut the tokens [begin, end) of each unit (int32 on the device) into items.

    begin_U: None: 0, or `window` tokens before the end. chunk: the fewest tokens of an item that is not a unit's last.
    fixed: exactly `chunk` tokens, and an item's result goes where its tokens are when all units' tokens are laid end to
    end. Otherwise results take `weight_U` places (None: 1). capacity: at least units + extra, or with `fixed` the most
    items there can be. empty: units without tokens have an item too, of no tokens.
    """
    units = end_U.shape[0]
    device = end_U.device
    work = WorkList(
        torch.empty((5, capacity), dtype=torch.int32, device=device),
        torch.empty(units + 1, dtype=torch.int32, device=device),
        torch.empty(units, dtype=torch.int32, device=device),
    )
    block = max(16, triton.next_power_of_2(units))
    _list_work_kernel[(units,)](
        end_U, begin_U, weight_U, work.items, work.first_U1, work.base_U, units, window or 0, extra, chunk, capacity,
        BLOCK_U=block, HAS_BEGIN=begin_U is not None, HAS_WEIGHT=weight_U is not None, WINDOW=window is not None, FIXED=fixed,
        EMPTY=empty, ALIGN=ALIGN, num_warps=4 if block <= 1024 else 8, **launch_options(),
    )  # fmt: skip
    return work
