"""Decode over the paged cache as one flow of blocks: a fixed number of programs, each with an equal share of all rows' blocks of keys.

A program of `decode.py` lives for one row's keys. At a few hundred tokens a row much of that life is its start: what to do, which pages,
the first keys, one wait after the other. Here a program goes on from row to row in one loop, so the next row's keys are on their way
while this row's last ones are attended. A row that lies across programs is put together by the last of them to arrive. The idea is
stream-K's (Osama et al. 2023) over keys. Legend: `raysgl.kernels.batch`; M rows of a tile, W blocks, S1 = S + 1.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from raysgl.kernels.triton.blocks import LOG2_E, finish
from raysgl.kernels.triton.decode import merge_row, new_parts
from raysgl.kernels.triton.runtime import launch_options, num_sms, workspace


@dataclass(frozen=True)
class FlowTile:
    """How the kernel is compiled, and how many programs an SM gets."""

    block_keys: int = 64
    num_warps: int = 4
    num_stages: int = 4
    programs: int = 2


def default_flow_tile(head_dim: int, dtype: torch.dtype) -> FlowTile:
    """A block of keys is 16 KiB at most."""
    return FlowTile(max(16, min(64, 16384 // (triton.next_power_of_2(head_dim) * dtype.itemsize))))


@dataclass
class FlowPlan:
    """What all layers of a step share. first_S1: int32, each row's first block, and how many there are. row_W: each block's row."""

    first_S1: torch.Tensor
    row_W: torch.Tensor
    kv_lens_S: torch.Tensor
    window: int | None
    tile: FlowTile


@triton.jit(do_not_specialize=["rows", "window"])
def _list_blocks_kernel(
    lens_ptr,
    first_ptr,
    row_ptr,
    rows,
    window,
    BLOCK_S: tl.constexpr,
    BLOCK_B: tl.constexpr,
    WINDOW: tl.constexpr,
    PDL: tl.constexpr,
):
    row = tl.program_id(0)
    s = tl.arange(0, BLOCK_S)
    if PDL:
        gdc_wait()
        gdc_launch_dependents()
    lens = tl.load(lens_ptr + s, mask=s < rows, other=0)
    if WINDOW:
        lens = tl.minimum(lens, window)
    # A row without tokens has a block too: somebody must write its zeros.
    counts = tl.where(s < rows, tl.maximum(tl.cdiv(lens, BLOCK_B), 1), 0)
    first = tl.sum(tl.where(s < row, counts, 0), axis=0)
    count = tl.sum(tl.where(s == row, counts, 0), axis=0)
    tl.store(first_ptr + row, first)
    if row == rows - 1:
        tl.store(first_ptr + rows, first + count)
    for start in range(0, count, 128):
        j = start + tl.arange(0, 128)
        tl.store(row_ptr + first + j, tl.zeros([128], tl.int32) + row, mask=j < count)


def plan_flow(kv_lens_S: torch.Tensor, longest: int, tile: FlowTile, window: int | None = None) -> FlowPlan:
    """Rows of these lengths (int32, on the device), none above `longest`. One launch, whatever the lengths."""
    rows, device = kv_lens_S.shape[0], kv_lens_S.device
    most = max(1, triton.cdiv(longest if window is None else min(longest, window), tile.block_keys))
    first_S1 = torch.empty(rows + 1, dtype=torch.int32, device=device)
    row_W = torch.empty(rows * most, dtype=torch.int32, device=device)
    block = max(16, triton.next_power_of_2(rows))
    _list_blocks_kernel[(rows,)](
        kv_lens_S, first_S1, row_W, rows, window or 0, BLOCK_S=block, BLOCK_B=tile.block_keys, WINDOW=window is not None,
        num_warps=4, **launch_options(),
    )  # fmt: skip
    return FlowPlan(first_S1, row_W, kv_lens_S, window, tile)


@triton.jit
def _place(program, share, first):
    """Where a program puts its part of the row that begins at block `first`: it has one row from before, and one that goes on."""
    return 2 * program + (first > program * share).to(tl.int32)


@triton.jit(do_not_specialize=["rows", "stride_table", "window"])
def _flow_kernel(
    q_ptr, keys_ptr, values_ptr, table_ptr, out_ptr, lse_ptr, part_ptr, part_lse_ptr, lens_ptr, first_ptr, row_ptr, arrived_ptr,
    scales_ptr, rows, stride_q, stride_page, stride_token, stride_head, stride_table, scale_log2, soft_cap_log2, window,
    N: tl.constexpr, G: tl.constexpr, H: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_B: tl.constexpr, BLOCK_H: tl.constexpr,
    PAGE: tl.constexpr, WINDOW: tl.constexpr, SCALED: tl.constexpr, SOFT_CAP: tl.constexpr, WITH_LSE: tl.constexpr,
    PRECISION: tl.constexpr, STAGES: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    kv_head = tl.program_id(0)
    program = tl.program_id(1)
    if PDL:
        gdc_wait()
        gdc_launch_dependents()
    total = tl.load(first_ptr + rows)
    share = tl.cdiv(total, tl.num_programs(1))
    begin = program * share
    end = tl.minimum(begin + share, total)

    m = tl.arange(0, BLOCK_M)
    h = tl.arange(0, BLOCK_H)
    b = tl.arange(0, BLOCK_B)
    valid = m < G
    head = kv_head * G + m % G
    inside = valid[:, None] & (h < H)[None, :]
    keys = keys_ptr + kv_head * stride_head
    values = values_ptr + kv_head * stride_head
    v_scale = 1.0
    if SCALED:
        scale_log2 *= tl.load(scales_ptr + kv_head)
        v_scale = tl.load(scales_ptr + N // G + kv_head)
    acc_MH = tl.zeros([BLOCK_M, BLOCK_H], tl.float32)
    top_M = tl.full([BLOCK_M], float("-inf"), tl.float32)
    norm_M = tl.zeros([BLOCK_M], tl.float32)
    # No loop and no barrier in this one, or Triton would not pipeline its loads.
    for block in tl.range(begin, end, num_stages=STAGES):
        row = tl.load(row_ptr + block)
        first = tl.load(first_ptr + row)
        following = tl.load(first_ptr + row + 1)
        length = tl.load(lens_ptr + row)
        low = 0
        if WINDOW:
            low = tl.maximum(length - window, 0)
        n = low + (block - first) * BLOCK_B + b
        seen_B = n < length
        page = tl.load(table_ptr + row.to(tl.int64) * stride_table + n // PAGE, mask=seen_B, other=0)
        offset = page.to(tl.int64) * stride_page + (n % PAGE) * stride_token
        # Read again for each block: from the cache, and on its way before it is needed.
        q_MH = tl.load(q_ptr + row.to(tl.int64) * stride_q + head[:, None] * H + h[None, :], mask=inside, other=0.0)
        if H == BLOCK_H:
            k_HB = tl.load(keys + offset[None, :] + h[:, None], mask=seen_B[None, :], other=0.0)
            v_BH = tl.load(values + offset[:, None] + h[None, :], mask=seen_B[:, None], other=0.0)
        else:
            k_HB = tl.load(keys + offset[None, :] + h[:, None], mask=seen_B[None, :] & (h < H)[:, None], other=0.0)
            v_BH = tl.load(values + offset[:, None] + h[None, :], mask=seen_B[:, None] & (h < H)[None, :], other=0.0)
        score_MB = tl.dot(q_MH, k_HB.to(q_MH.dtype), input_precision=PRECISION) * scale_log2
        if SOFT_CAP:
            power_MB = tl.exp2(score_MB * (2.0 * 1.4426950408889634 / soft_cap_log2))
            score_MB = soft_cap_log2 * (1.0 - 2.0 / (power_MB + 1.0))
        score_MB = tl.where(seen_B[None, :], score_MB, float("-inf"))
        fresh = (block == first) | (block == begin)
        top_M = tl.where(fresh, float("-inf"), top_M)
        norm_M = tl.where(fresh, 0.0, norm_M)
        new_top_M = tl.maximum(top_M, tl.max(score_MB, axis=1))
        base_M = tl.where(new_top_M == float("-inf"), 0.0, new_top_M)
        weight_MB = tl.exp2(score_MB - base_M[:, None])
        shrink_M = tl.exp2(top_M - base_M)
        norm_M = norm_M * shrink_M + tl.sum(weight_MB, axis=1)
        acc_MH = acc_MH * shrink_M[:, None]
        acc_MH = tl.dot(weight_MB.to(q_MH.dtype), v_BH.to(q_MH.dtype), acc_MH, input_precision=PRECISION)
        top_M = new_top_M
        if (block == following - 1) | (block == end - 1):
            out_MH, lse_M = finish(acc_MH, top_M, norm_M)
            out_MH *= v_scale
            if (first >= begin) & (following <= end):
                to = row.to(tl.int64) * N + head
                tl.store(out_ptr + to[:, None] * H + h[None, :], out_MH.to(out_ptr.dtype.element_ty), mask=inside)
                if WITH_LSE:
                    tl.store(lse_ptr + to, lse_M, mask=valid)
            else:
                to = _place(program, share, first).to(tl.int64) * N + head
                tl.store(part_ptr + to[:, None] * H + h[None, :], out_MH, mask=inside)
                tl.store(part_lse_ptr + to, lse_M, mask=valid)
    if begin < end:
        # All threads' parts are written before this program arrives; the last to arrive sees everybody's.
        tl.debug_barrier()
        for which in tl.static_range(2):
            row = tl.load(row_ptr + (begin if which == 0 else end - 1))
            first = tl.load(first_ptr + row)
            following = tl.load(first_ptr + row + 1)
            split = (first < begin) | (following > end)
            if which == 1:
                split = split & (row != tl.load(row_ptr + begin))
            if split:
                leader = first // share
                count = (following - 1) // share - leader + 1
                mine = arrived_ptr + row * tl.num_programs(0) + kv_head
                if tl.atomic_add(mine, 1, sem="acq_rel") == count - 1:
                    tl.store(mine, 0)  # for the next launch
                    out_MH, lse_M = merge_row(
                        part_ptr, part_lse_ptr, _place(leader, share, first), 2 * (leader + 1), 2, count, head, h, valid, inside,
                        N, H, BLOCK_M, BLOCK_H,
                    )  # fmt: skip
                    to = row.to(tl.int64) * N + head
                    tl.store(out_ptr + to[:, None] * H + h[None, :], out_MH.to(out_ptr.dtype.element_ty), mask=inside)
                    if WITH_LSE:
                        tl.store(lse_ptr + to, lse_M, mask=valid)


def flow_decode(
    q_SNH: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    page_table_SP: torch.Tensor,
    plan: FlowPlan,
    scale: float,
    soft_cap: float | None = None,
    lse_SN: torch.Tensor | None = None,
    scales_2K: torch.Tensor | None = None,
) -> torch.Tensor:
    """What `decode.paged_decode` gives. One launch."""
    rows, heads, dim = q_SNH.shape
    kv_heads = keys.shape[2]
    if q_SNH.stride(2) != 1 or q_SNH.stride(1) != dim or keys.stride() != values.stride() or keys.stride(3) != 1:
        raise ValueError("attention needs heads without gaps, and keys and values laid out alike")
    device, tile = q_SNH.device, plan.tile
    programs = max(1, tile.programs * num_sms(device) // kv_heads)
    out_SNH = torch.empty((rows, heads, dim), dtype=q_SNH.dtype, device=device)
    part, part_lse = new_parts(2 * programs, heads, dim, device)
    arrived = workspace("decode parts that arrived", rows * kv_heads, torch.int32, device)
    _flow_kernel[(kv_heads, programs)](
        q_SNH, keys, values, page_table_SP, out_SNH, lse_SN, part, part_lse, plan.kv_lens_S, plan.first_S1, plan.row_W, arrived,
        scales_2K, rows, q_SNH.stride(0), keys.stride(0), keys.stride(1), keys.stride(2), page_table_SP.stride(0),
        scale * LOG2_E, (soft_cap or 0.0) * LOG2_E, plan.window or 0,
        N=heads, G=heads // kv_heads, H=dim, BLOCK_M=max(16, triton.next_power_of_2(heads // kv_heads)), BLOCK_B=tile.block_keys,
        BLOCK_H=triton.next_power_of_2(dim), PAGE=keys.shape[1], WINDOW=plan.window is not None, SCALED=scales_2K is not None,
        SOFT_CAP=soft_cap is not None, WITH_LSE=lse_SN is not None,
        PRECISION="ieee" if q_SNH.dtype == torch.float32 else "tf32", STAGES=tile.num_stages, num_warps=tile.num_warps,
        **launch_options(),
    )  # fmt: skip
    return out_SNH
