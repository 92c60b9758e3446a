"""Decode over the paged cache: one query token a row, keys split over programs, partial results merged by log-sum-exp.

Split-KV as in Flash-Decoding (Dao et al. 2023). The G query heads that share a key head make one tile, so keys are read
once. Whoever finishes a row's last part merges them all, so there is one launch. Reference: `raysgl.kernels.attention.torch_backend`. Legend: `raysgl.kernels.batch`; U units and W items of
`raysgl.kernels.triton.work`; M rows of a tile, R places for partial results.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from raysgl.kernels.triton.blocks import LOG2_E, attend_blocks, finish
from raysgl.kernels.triton.runtime import launch_options, num_sms, roomy, workspace
from raysgl.kernels.triton.work import WorkList, list_work

PROGRAMS_PER_SM = 4
"""Programs to aim for: enough that an SM has loads in flight while others finish."""


@dataclass(frozen=True)
class Tile:
    """How an attention kernel is compiled: keys of a block, warps, stages of its load pipeline."""

    block_keys: int = 64
    num_warps: int = 4
    num_stages: int = 3


def default_tile(head_dim: int, dtype: torch.dtype, device: torch.device) -> Tile:
    """A block of keys is 16 KiB, as is one of values: with two of each on their way, three programs fit an SM of 228 KiB."""
    keys = max(16, min(64, 16384 // (triton.next_power_of_2(head_dim) * dtype.itemsize)))
    return Tile(keys, 4, 3 if roomy(device) else 2)


@dataclass
class DecodePlan:
    """What all layers of a step share. Layers with another window need another plan."""

    work: WorkList
    window: int | None


def plan_decode(
    kv_lens_S: torch.Tensor, num_kv_heads: int, window: int | None = None, extra: int | None = None, chunk: int = 64
) -> DecodePlan:
    """Split rows of these lengths (int32, on the device) into about equal work. One launch, whatever the lengths.

    extra: items beyond one a row (None: what fills the GPU). chunk: the fewest tokens worth a program of their own.
    """
    rows = kv_lens_S.shape[0]
    extra = fill(kv_lens_S.device, num_kv_heads) if extra is None else extra
    return DecodePlan(list_work(kv_lens_S, rows + extra, window=window, extra=extra, chunk=chunk, empty=True), window)


def fill(device: torch.device, num_kv_heads: int) -> int:
    """Items of work that fill the GPU, at one program an item and key head."""
    return max(1, PROGRAMS_PER_SM * num_sms(device) // num_kv_heads)


@triton.jit
def _merge(
    part_ptr, part_lse_ptr, base, count, head, h, valid, inside,
    N: tl.constexpr, H: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_H: tl.constexpr,
):  # fmt: skip
    """(output, log-sum-exp) of the heads of one row from its `count` parts."""
    acc_MH = tl.zeros([BLOCK_M, BLOCK_H], tl.float32)
    top_M = tl.full([BLOCK_M], float("-inf"), tl.float32)
    norm_M = tl.zeros([BLOCK_M], tl.float32)
    for i in range(count):
        to = (base + i).to(tl.int64) * N + head
        # .cg: other SMs wrote them.
        lse_M = tl.load(part_lse_ptr + to, mask=valid, other=float("-inf"), cache_modifier=".cg") * 1.4426950408889634
        part_MH = tl.load(part_ptr + to[:, None] * H + h[None, :], mask=inside, other=0.0, cache_modifier=".cg")
        new_top_M = tl.maximum(top_M, lse_M)
        base_M = tl.where(new_top_M == float("-inf"), 0.0, new_top_M)
        weight_M = tl.exp2(lse_M - base_M)
        shrink_M = tl.exp2(top_M - base_M)
        acc_MH = acc_MH * shrink_M[:, None] + part_MH * weight_M[:, None]
        norm_M = norm_M * shrink_M + weight_M
        top_M = new_top_M
    return finish(acc_MH, top_M, norm_M)


@triton.jit(do_not_specialize=["capacity", "stride_table"])
def _decode_kernel(
    q_ptr, keys_ptr, values_ptr, table_ptr, out_ptr, lse_ptr, part_ptr, part_lse_ptr, items_ptr, count_ptr,
    members_ptr, first_member_ptr, num_members_ptr, first_item_ptr, base_ptr, arrived_ptr, scales_ptr,
    stride_q, stride_page, stride_token, stride_head, stride_table, capacity, scale_log2, soft_cap_log2,
    N: tl.constexpr, G: tl.constexpr, H: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_B: tl.constexpr, BLOCK_H: tl.constexpr,
    PAGE: tl.constexpr, GROUPED: tl.constexpr, SCALED: tl.constexpr, SOFT_CAP: tl.constexpr, WITH_LSE: tl.constexpr, PRECISION: tl.constexpr,
    MERGE: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    # Key heads are neighbours in the grid: together their programs read whole tokens.
    kv_head = tl.program_id(0)
    item = tl.program_id(1)
    if PDL:
        gdc_wait()
        gdc_launch_dependents()
    if item < tl.load(count_ptr):
        unit = tl.load(items_ptr + item)
        begin = tl.load(items_ptr + capacity + item)
        end = tl.load(items_ptr + 2 * capacity + item)
        place = tl.load(items_ptr + 3 * capacity + item)
        whole = tl.load(items_ptr + 4 * capacity + item)

        m = tl.arange(0, BLOCK_M)
        h = tl.arange(0, BLOCK_H)
        member = m // G
        if GROUPED:
            rows = tl.load(num_members_ptr + unit)
            valid = (member < rows) & (member < BLOCK_M // G)
            row = tl.load(members_ptr + tl.load(first_member_ptr + unit) + member, mask=valid, other=0)
        else:
            valid = m < G
            row = tl.zeros([BLOCK_M], tl.int32) + unit
        head = kv_head * G + m % G
        inside = valid[:, None] & (h < H)[None, :]
        q_MH = tl.load(q_ptr + row.to(tl.int64)[:, None] * stride_q + head[:, None] * H + h[None, :], mask=inside, other=0.0)

        acc_MH = tl.zeros([BLOCK_M, BLOCK_H], tl.float32)
        top_M = tl.full([BLOCK_M], float("-inf"), tl.float32)
        norm_M = tl.zeros([BLOCK_M], tl.float32)
        table = table_ptr + unit.to(tl.int64) * stride_table
        keys = keys_ptr + kv_head * stride_head
        values = values_ptr + kv_head * stride_head
        if SCALED:
            scale_log2 *= tl.load(scales_ptr + kv_head)
        middle = begin + (end - begin) // BLOCK_B * BLOCK_B
        acc_MH, top_M, norm_M = attend_blocks(
            q_MH, acc_MH, top_M, norm_M, top_M, keys, values, table, begin, middle, end,
            stride_page, stride_token, H, scale_log2, soft_cap_log2, 0,
            PAGE, BLOCK_B, BLOCK_H, H == BLOCK_H, False, False, False, SOFT_CAP, PRECISION,
        )  # fmt: skip
        acc_MH, top_M, norm_M = attend_blocks(
            q_MH, acc_MH, top_M, norm_M, top_M, keys, values, table, middle, end, end,
            stride_page, stride_token, H, scale_log2, soft_cap_log2, 0,
            PAGE, BLOCK_B, BLOCK_H, H == BLOCK_H, True, False, False, SOFT_CAP, PRECISION,
        )  # fmt: skip
        out_MH, lse_M = finish(acc_MH, top_M, norm_M)
        if SCALED:
            out_MH *= tl.load(scales_ptr + N // G + kv_head)

        if whole != 0 and not GROUPED:
            to = row.to(tl.int64) * N + head
            tl.store(out_ptr + to[:, None] * H + h[None, :], out_MH.to(out_ptr.dtype.element_ty), mask=inside)
            if WITH_LSE:
                tl.store(lse_ptr + to, lse_M, mask=valid)
        else:
            to = (place + (member if GROUPED else 0)).to(tl.int64) * N + head
            tl.store(part_ptr + to[:, None] * H + h[None, :], out_MH, mask=inside)
            tl.store(part_lse_ptr + to, lse_M, mask=valid)
            if MERGE:
                # All threads' parts are written before this one arrives; the last to arrive sees everybody's.
                tl.debug_barrier()
                mine = arrived_ptr + unit * tl.num_programs(0) + kv_head
                count = tl.load(first_item_ptr + unit + 1) - tl.load(first_item_ptr + unit)
                if tl.atomic_add(mine, 1, sem="acq_rel") == count - 1:
                    tl.store(mine, 0)  # for the next launch
                    out_MH, lse_M = _merge(
                        part_ptr, part_lse_ptr, tl.load(base_ptr + unit), count, head, h, valid, inside, N, H, BLOCK_M, BLOCK_H
                    )
                    to = row.to(tl.int64) * N + head
                    tl.store(out_ptr + to[:, None] * H + h[None, :], out_MH.to(out_ptr.dtype.element_ty), mask=inside)
                    if WITH_LSE:
                        tl.store(lse_ptr + to, lse_M, mask=valid)


@dataclass
class Members:
    """Rows that share a prefix, in tiles: the tile of unit u has the rows members_S[first_U[u] : first_U[u] + count_U[u]]."""

    members_S: torch.Tensor
    first_U: torch.Tensor
    count_U: torch.Tensor


def launch_decode(
    q_SNH: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    page_table_SP: torch.Tensor,
    work: WorkList,
    parts: tuple[torch.Tensor, torch.Tensor],
    out_SNH: torch.Tensor,
    lse_SN: torch.Tensor | None,
    scale: float,
    soft_cap: float | None,
    tile: Tile,
    block_rows: int,
    members: Members | None = None,
    scales_2K: torch.Tensor | None = None,
    merge: bool = False,
) -> None:
    """Do the items of `work`: those that are all of a row's work go to out and lse, the others to `parts` (o_RNH, lse_RN).

    With `members`, units are tiles of rows that read unit u's pages; block_rows: M of a tile. merge: parts are merged to out and lse
    too, in this launch. Then every row must have an item.
    """
    heads, dim = q_SNH.shape[1:]
    kv_heads = keys.shape[2]
    if q_SNH.stride(2) != 1 or q_SNH.stride(1) != dim or keys.stride() != values.stride() or keys.stride(3) != 1:
        raise ValueError("attention needs heads without gaps, and keys and values laid out alike")
    arrived = workspace("decode parts that arrived", len(q_SNH) * kv_heads, torch.int32, q_SNH.device) if merge else None
    _decode_kernel[(kv_heads, work.capacity)](
        q_SNH, keys, values, page_table_SP, out_SNH, lse_SN, parts[0], parts[1], work.items, work.first_U1[-1:],
        members and members.members_S, members and members.first_U, members and members.count_U,
        work.first_U1, work.base_U, arrived, scales_2K,
        q_SNH.stride(0), keys.stride(0), keys.stride(1), keys.stride(2), page_table_SP.stride(0), work.capacity,
        scale * LOG2_E, (soft_cap or 0.0) * LOG2_E,
        N=heads, G=heads // kv_heads, H=dim, BLOCK_M=block_rows, BLOCK_B=tile.block_keys, BLOCK_H=triton.next_power_of_2(dim),
        PAGE=keys.shape[1], GROUPED=members is not None, SCALED=scales_2K is not None, SOFT_CAP=soft_cap is not None, WITH_LSE=lse_SN is not None,
        PRECISION="ieee" if q_SNH.dtype == torch.float32 else "tf32", MERGE=merge,
        num_warps=tile.num_warps, num_stages=tile.num_stages, **launch_options(),
    )  # fmt: skip


def paged_decode(
    q_SNH: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    page_table_SP: torch.Tensor,
    plan: DecodePlan,
    scale: float,
    soft_cap: float | None = None,
    lse_SN: torch.Tensor | None = None,
    tile: Tile | None = None,
    scales_2K: torch.Tensor | None = None,
) -> torch.Tensor:
    """Each row's last token attends over its pages. One launch. Returns o_SNH; fills lse_SN (float32, natural log) if given.

    keys, values: one layer's cache, [pages, page_size, K, H]. page_table_SP: int32. The plan says the rows' lengths and
    the window; rows of length 0 give zeros. Query head n reads key head n // (N / K). scales_2K: of keys and values in 8 bits.
    """
    rows, heads, dim = q_SNH.shape
    out_SNH = torch.empty((rows, heads, dim), dtype=q_SNH.dtype, device=q_SNH.device)
    parts = new_parts(plan.work.capacity, heads, dim, q_SNH.device)
    block_rows = max(16, triton.next_power_of_2(heads // keys.shape[2]))
    launch_decode(
        q_SNH, keys, values, page_table_SP, plan.work, parts, out_SNH, lse_SN, scale, soft_cap,
        tile or default_tile(dim, q_SNH.dtype, q_SNH.device), block_rows, scales_2K=scales_2K, merge=True,
    )  # fmt: skip
    return out_SNH


def new_parts(places: int, heads: int, dim: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Memory for partial results: o_RNH and lse_RN, float32."""
    return (
        torch.empty((places, heads, dim), dtype=torch.float32, device=device),
        torch.empty((places, heads), dtype=torch.float32, device=device),
    )
