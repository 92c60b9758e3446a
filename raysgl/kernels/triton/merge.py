"""Partial attention results over disjoint keys, put together by their log-sum-exps (natural logarithms).

o = sum_i exp(lse_i - lse) o_i with lse = log sum_i exp(lse_i) (e.g. Ye et al. 2024, cascade inference). Legend:
`raysgl.kernels.batch`; U, W of `raysgl.kernels.triton.work`; R places for partial results.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from raysgl.kernels.triton.runtime import launch_options
from raysgl.kernels.triton.work import WorkList

BLOCK_HEADS = 4


@triton.jit
def _add_parts(acc_NH, top_N, norm_N, part_ptr, part_lse_ptr, place, step, count, head, h, N: tl.constexpr, H: tl.constexpr):
    inside = (head < N)[:, None] & (h < H)[None, :]
    for i in range(count):
        to = (place + i * step).to(tl.int64) * N + head
        # .cg: the parts were written by other SMs; they are read once.
        lse_N = tl.load(part_lse_ptr + to, mask=head < N, other=float("-inf"), cache_modifier=".cg")
        part_NH = tl.load(part_ptr + to[:, None] * H + h[None, :], mask=inside, other=0.0, cache_modifier=".cg")
        new_top_N = tl.maximum(top_N, lse_N)
        base_N = tl.where(new_top_N == float("-inf"), 0.0, new_top_N)
        shrink_N = tl.exp(top_N - base_N)
        weight_N = tl.exp(lse_N - base_N)
        acc_NH = acc_NH * shrink_N[:, None] + part_NH * weight_N[:, None]
        norm_N = norm_N * shrink_N + weight_N
        top_N = new_top_N
    return acc_NH, top_N, norm_N


@triton.jit
def _merge_parts_kernel(
    out_ptr, lse_ptr, first_ptr, base_ptr, part_ptr, part_lse_ptr,
    shared_first_ptr, shared_base_ptr, shared_part_ptr, shared_lse_ptr, tile_ptr, slot_ptr, count_ptr, shared_ptr,
    N: tl.constexpr, H: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_H: tl.constexpr, SHARED: tl.constexpr,
    WITH_LSE: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0)
    head = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    h = tl.arange(0, BLOCK_H)
    if PDL:
        gdc_wait()
        gdc_launch_dependents()
    first = tl.load(first_ptr + row)
    count = tl.load(first_ptr + row + 1) - first
    shared = 0
    if SHARED:
        shared = tl.load(shared_ptr + row)
    if count != 1 or shared != 0:  # else the row's one item wrote the result
        acc_NH = tl.zeros([BLOCK_N, BLOCK_H], tl.float32)
        top_N = tl.full([BLOCK_N], float("-inf"), tl.float32)
        norm_N = tl.zeros([BLOCK_N], tl.float32)
        if SHARED:
            tile = tl.load(tile_ptr + row)
            shared_count = tl.load(shared_first_ptr + tile + 1) - tl.load(shared_first_ptr + tile)
            acc_NH, top_N, norm_N = _add_parts(
                acc_NH, top_N, norm_N, shared_part_ptr, shared_lse_ptr,
                tl.load(shared_base_ptr + tile) + tl.load(slot_ptr + row), tl.load(count_ptr + tile),
                tl.where(shared != 0, shared_count, 0), head, h, N, H,
            )  # fmt: skip
        acc_NH, top_N, norm_N = _add_parts(
            acc_NH, top_N, norm_N, part_ptr, part_lse_ptr, tl.load(base_ptr + row), 1, count, head, h, N, H
        )
        seen_N = norm_N > 0.0
        safe_N = tl.where(seen_N, norm_N, 1.0)
        to = row.to(tl.int64) * N + head
        inside = (head < N)[:, None] & (h < H)[None, :]
        tl.store(out_ptr + to[:, None] * H + h[None, :], (acc_NH / safe_N[:, None]).to(out_ptr.dtype.element_ty), mask=inside)
        if WITH_LSE:
            tl.store(lse_ptr + to, tl.where(seen_N, top_N + tl.log(safe_N), float("-inf")), mask=head < N)


@dataclass
class SharedParts:
    """Partial results over shared prefixes. Row s has shared_S[s] shared tokens (0: none), and is number slot_S[s] of the
    count_U[u] rows of tile u = tile_S[s], whose results are in `parts` as `work` says.
    """

    work: WorkList
    parts: tuple[torch.Tensor, torch.Tensor]
    tile_S: torch.Tensor
    slot_S: torch.Tensor
    count_U: torch.Tensor
    shared_S: torch.Tensor


def merge_parts(
    work: WorkList,
    parts: tuple[torch.Tensor, torch.Tensor],
    out_SNH: torch.Tensor,
    lse_SN: torch.Tensor | None = None,
    shared: SharedParts | None = None,
) -> None:
    """Write the rows of out (and lse) whose work took more than one item, or none. One launch."""
    rows, heads, dim = out_SNH.shape
    _merge_parts_kernel[(rows, triton.cdiv(heads, BLOCK_HEADS))](
        out_SNH, lse_SN, work.first_U1, work.base_U, parts[0], parts[1],
        shared and shared.work.first_U1, shared and shared.work.base_U, shared and shared.parts[0], shared and shared.parts[1],
        shared and shared.tile_S, shared and shared.slot_S, shared and shared.count_U, shared and shared.shared_S,
        N=heads, H=dim, BLOCK_N=BLOCK_HEADS, BLOCK_H=triton.next_power_of_2(dim), SHARED=shared is not None,
        WITH_LSE=lse_SN is not None, num_warps=4, **launch_options(),
    )  # fmt: skip


@triton.jit(do_not_specialize=["total"])
def _merge_state_kernel(
    a_ptr, a_lse_ptr, b_ptr, b_lse_ptr, out_ptr, lse_ptr, total, H: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_H: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    head = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    h = tl.arange(0, BLOCK_H)
    inside = (head < total)[:, None] & (h < H)[None, :]
    if PDL:
        gdc_wait()
        gdc_launch_dependents()
    a_lse = tl.load(a_lse_ptr + head, mask=head < total, other=float("-inf"))
    b_lse = tl.load(b_lse_ptr + head, mask=head < total, other=float("-inf"))
    a = tl.load(a_ptr + head[:, None] * H + h[None, :], mask=inside, other=0.0).to(tl.float32)
    b = tl.load(b_ptr + head[:, None] * H + h[None, :], mask=inside, other=0.0).to(tl.float32)
    top = tl.maximum(a_lse, b_lse)
    base = tl.where(top == float("-inf"), 0.0, top)
    a_weight, b_weight = tl.exp(a_lse - base), tl.exp(b_lse - base)
    norm = a_weight + b_weight
    safe = tl.where(norm > 0.0, norm, 1.0)
    out = (a * a_weight[:, None] + b * b_weight[:, None]) / safe[:, None]
    tl.store(out_ptr + head[:, None] * H + h[None, :], out.to(out_ptr.dtype.element_ty), mask=inside)
    tl.store(lse_ptr + head, base + tl.where(norm > 0.0, tl.log(safe), float("-inf")), mask=head < total)


def merge_state(
    a_TNH: torch.Tensor, a_lse_TN: torch.Tensor, b_TNH: torch.Tensor, b_lse_TN: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Two attention results over disjoint keys as one: (o_TNH, lse_TN). All contiguous; lse float32, -inf for no keys."""
    tokens, heads, dim = a_TNH.shape
    out, lse = torch.empty_like(a_TNH), torch.empty_like(a_lse_TN)
    total = tokens * heads
    if total:
        _merge_state_kernel[(triton.cdiv(total, BLOCK_HEADS),)](
            a_TNH, a_lse_TN, b_TNH, b_lse_TN, out, lse, total,
            H=dim, BLOCK_N=BLOCK_HEADS, BLOCK_H=triton.next_power_of_2(dim), num_warps=4, **launch_options(),
        )  # fmt: skip
    return out, lse
