"""Cascade decode: rows that share a long prefix read its pages once, each its own suffix, and the results are merged.

After Hydragen (Juravsky et al. 2024) and FlashInfer's cascade inference (Ye et al. 2024). The queries of a group's rows, all heads that
share a key head, are stacked into tiles; a prefix is read once a tile. Who shares what is data on the device, so a
captured graph serves any grouping. Legend: `raysgl.kernels.batch`; J groups; U, W of `raysgl.kernels.triton.work`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from raysgl.kernels.triton.decode import Members, Tile, default_tile, fill, launch_decode, new_parts
from raysgl.kernels.triton.merge import SharedParts, merge_parts
from raysgl.kernels.triton.runtime import launch_options
from raysgl.kernels.triton.work import WorkList, list_work

BLOCK_ROWS = 64
"""Queries of a tile over a shared prefix: the fewest that fill Hopper's matrix instruction, 16 rows at 4 heads a key head."""


@dataclass
class CascadePlan:
    """What all layers of a step share.

    shared_work: over the prefixes; its units are the rows that lead a tile. own_work: over each row's suffix.
    members: rows of the tiles. tile_S: the row that leads each row's tile. slot_S: the row's place in it. shared_S: tokens
    of the row's shared prefix, 0 for rows that attend alone. places: the most partial results of shared_work.
    """

    shared_work: WorkList
    own_work: WorkList
    members: Members
    tile_S: torch.Tensor
    slot_S: torch.Tensor
    shared_S: torch.Tensor
    places: int


@triton.jit(do_not_specialize=["rows", "page_size"])
def _group_kernel(
    group_ptr, shared_pages_ptr, members_ptr, first_ptr, count_ptr, end_ptr, tile_ptr, slot_ptr, shared_ptr, rows, page_size,
    TILE: tl.constexpr, BLOCK_S: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    # One program per row: where it stands among the rows of its group, and of the groups before.
    row = tl.program_id(0)
    s = tl.arange(0, BLOCK_S)
    if PDL:
        gdc_wait()
        gdc_launch_dependents()
    groups = tl.load(group_ptr + s, mask=s < rows, other=-1)
    group = tl.load(group_ptr + row)
    same = ((groups == group) & (group >= 0)).to(tl.int32)
    size = tl.sum(same, axis=0)
    rank = tl.sum(tl.where(s < row, same, 0), axis=0)
    shared = 0
    if size >= 2:  # a row alone gains nothing
        shared = tl.load(shared_pages_ptr + group) * page_size
    place = tl.sum(((groups >= 0) & (groups < group)).to(tl.int32), axis=0) + rank
    leader_rank = rank // TILE * TILE
    leader = tl.sum(tl.where((tl.cumsum(same, axis=0) - 1 == leader_rank) & (same == 1), s, 0), axis=0)
    leads = rank == leader_rank
    if group >= 0:
        tl.store(members_ptr + place, row)
    tl.store(first_ptr + row, place)
    tl.store(count_ptr + row, tl.minimum(size - rank, TILE))
    tl.store(end_ptr + row, tl.where(leads, shared, 0))
    tl.store(tile_ptr + row, leader)
    tl.store(slot_ptr + row, rank - leader_rank)
    tl.store(shared_ptr + row, shared)


def plan_cascade(
    group_S: torch.Tensor,
    shared_pages_J: torch.Tensor,
    kv_lens_S: torch.Tensor,
    page_size: int,
    heads_per_kv_head: int,
    num_kv_heads: int,
    extra: int | None = None,
    chunk: int = 64,
) -> CascadePlan:
    """Plan a decode step in which rows of a group have their first pages in common. Three launches, whatever the values.

    group_S: int32, the group of each row, -1 for none. shared_pages_J: int32, how many pages, full ones, all rows of the
    group begin with; at most what each of them has. extra, chunk: see `plan_decode`.
    """
    rows, device = group_S.shape[0], group_S.device
    extra = fill(device, num_kv_heads) if extra is None else extra
    tile = BLOCK_ROWS // heads_per_kv_head
    members, first, count, end, tile_S, slot_S, shared_S = torch.empty((7, rows), dtype=torch.int32, device=device)
    block = max(16, triton.next_power_of_2(rows))
    _group_kernel[(rows,)](
        group_S, shared_pages_J, members, first, count, end, tile_S, slot_S, shared_S, rows, page_size,
        TILE=tile, BLOCK_S=block, num_warps=4 if block <= 1024 else 8, **launch_options(),
    )  # fmt: skip
    shared_work = list_work(end, rows + extra, weight_U=count, extra=extra, chunk=chunk)
    own_work = list_work(kv_lens_S, rows + extra, begin_U=shared_S, extra=extra, chunk=chunk)
    # A unit's items take a place for each of its rows: at most one item's worth for every row, and `extra` items more.
    return CascadePlan(shared_work, own_work, Members(members, first, count), tile_S, slot_S, shared_S, rows + extra * tile)


def cascade_decode(
    q_SNH: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    page_table_SP: torch.Tensor,
    plan: CascadePlan,
    scale: float,
    soft_cap: float | None = None,
    lse_SN: torch.Tensor | None = None,
    tile: Tile | None = None,
    shared_tile: Tile | None = None,
    scales_2K: torch.Tensor | None = None,
) -> torch.Tensor:
    """What `paged_decode` gives, with shared pages read once a tile. Three launches. Layers without a sliding window only."""
    rows, heads, dim = q_SNH.shape
    device = q_SNH.device
    tile = tile or default_tile(dim, q_SNH.dtype, device)
    out_SNH = torch.empty((rows, heads, dim), dtype=q_SNH.dtype, device=device)
    shared_parts = new_parts(plan.places, heads, dim, device)
    own_parts = new_parts(plan.own_work.capacity, heads, dim, device)
    # One block of keys on its way, not two: 82 instead of 115 KiB of shared memory, so two programs of a large tile to an SM.
    launch_decode(
        q_SNH, keys, values, page_table_SP, plan.shared_work, shared_parts, out_SNH, None, scale, soft_cap,
        shared_tile or Tile(tile.block_keys, tile.num_warps, 2), BLOCK_ROWS, plan.members, scales_2K,
    )  # fmt: skip
    block_rows = max(16, triton.next_power_of_2(heads // keys.shape[2]))
    launch_decode(
        q_SNH, keys, values, page_table_SP, plan.own_work, own_parts, out_SNH, lse_SN, scale, soft_cap, tile, block_rows,
        scales_2K=scales_2K,
    )  # fmt: skip
    shared = SharedParts(plan.shared_work, shared_parts, plan.tile_S, plan.slot_S, plan.members.count_U, plan.shared_S)
    merge_parts(plan.own_work, own_parts, out_SNH, lse_SN, shared)
    return out_SNH
