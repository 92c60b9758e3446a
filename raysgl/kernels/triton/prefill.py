"""Prefill over the paged cache: ragged rows of new tokens attend over their pages, causally, prefix included.

FlashAttention 2's loop (Dao 2023) over a list of tiles. A tile is a few neighbouring tokens of a row times the G query heads that
share a key head, so that short chunks fill it too. Reference: `raysgl.kernels.attention.torch_backend`.
Legend: `raysgl.kernels.batch`; W tiles, M rows of a tile.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from raysgl.kernels.triton.blocks import LOG2_E, attend_blocks, finish
from raysgl.kernels.triton.decode import Tile, default_tile
from raysgl.kernels.triton.runtime import launch_options
from raysgl.kernels.triton.work import WorkList, list_work


@dataclass
class PrefillPlan:
    """What all layers of a step share. work: tiles of `block_rows` queries, in tokens of each row."""

    work: WorkList
    block_rows: int
    query_lens_S: torch.Tensor
    kv_lens_S: torch.Tensor


def plan_prefill(
    query_lens_S: torch.Tensor, kv_lens_S: torch.Tensor, num_tokens: int, heads_per_kv_head: int, block_rows: int | None = None
) -> PrefillPlan:
    """Cut rows' new tokens into tiles (lengths int32 on the device). One launch.

    num_tokens: at least the sum of query_lens; it and the number of rows bound the tiles. block_rows: None: by the mean row.
    """
    rows = query_lens_S.shape[0]
    if block_rows is None:
        mean = num_tokens * heads_per_kv_head // rows
        block_rows = 128 if mean > 64 else 64 if mean > 16 else 16
    block_rows = max(block_rows, triton.next_power_of_2(heads_per_kv_head))
    tokens = block_rows // heads_per_kv_head
    work = list_work(query_lens_S, triton.cdiv(num_tokens, tokens) + rows, chunk=tokens, fixed=True)
    return PrefillPlan(work, block_rows, query_lens_S, kv_lens_S)


def default_prefill_tile(head_dim: int, block_rows: int, dtype: torch.dtype, device: torch.device) -> Tile:
    """Blocks of keys as in decode; 8 warps where a tile is two of the matrix unit's 64 rows.

    Tiles of 64 rows keep one block of keys less on its way, so that two programs fit an SM (82 instead of 115 KiB); registers leave
    room for one program of 128 rows anyway.
    """
    keys = default_tile(head_dim, dtype, device)
    return Tile(keys.block_keys, 8 if block_rows == 128 else 4, keys.num_stages if head_dim <= 128 and block_rows != 64 else 2)


@triton.jit(do_not_specialize=["capacity", "stride_table", "window"])
def _prefill_kernel(
    q_ptr, keys_ptr, values_ptr, table_ptr, out_ptr, lse_ptr, items_ptr, count_ptr, query_lens_ptr, kv_lens_ptr,
    scales_ptr, stride_q, stride_page, stride_token, stride_head, stride_table, capacity, scale_log2, soft_cap_log2, window,
    N: tl.constexpr, G: tl.constexpr, H: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_B: tl.constexpr, BLOCK_H: tl.constexpr,
    PAGE: tl.constexpr, WINDOW: tl.constexpr, SCALED: tl.constexpr, SOFT_CAP: tl.constexpr, WITH_LSE: tl.constexpr, PRECISION: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    kv_head = tl.program_id(0)
    item = tl.program_id(1)
    if PDL:
        gdc_wait()
        gdc_launch_dependents()
    if item < tl.load(count_ptr):
        row = tl.load(items_ptr + item)
        begin = tl.load(items_ptr + capacity + item)
        end = tl.load(items_ptr + 2 * capacity + item)
        token0 = tl.load(items_ptr + 3 * capacity + item)
        # Position of the row's first new token.
        past = tl.load(kv_lens_ptr + row) - tl.load(query_lens_ptr + row)

        m = tl.arange(0, BLOCK_M)
        h = tl.arange(0, BLOCK_H)
        t = m // G
        valid = (t < end - begin) & (t < BLOCK_M // G)
        head = kv_head * G + m % G
        inside = valid[:, None] & (h < H)[None, :]
        token = (token0 + t).to(tl.int64)
        q_MH = tl.load(q_ptr + token[:, None] * stride_q + head[:, None] * H + h[None, :], mask=inside, other=0.0)
        position_M = past + begin + t

        # Keys up to the first query's own are seen by all queries, the rest by some.
        last = past + end
        low = 0
        if WINDOW:
            low = tl.maximum(past + begin - window + 1, 0)
            middle = low
        else:
            middle = (past + begin + 1) // BLOCK_B * BLOCK_B
        acc_MH = tl.zeros([BLOCK_M, BLOCK_H], tl.float32)
        top_M = tl.full([BLOCK_M], float("-inf"), tl.float32)
        norm_M = tl.zeros([BLOCK_M], tl.float32)
        table = table_ptr + row.to(tl.int64) * stride_table
        keys = keys_ptr + kv_head * stride_head
        values = values_ptr + kv_head * stride_head
        if SCALED:
            scale_log2 *= tl.load(scales_ptr + kv_head)
        if not WINDOW:
            acc_MH, top_M, norm_M = attend_blocks(
                q_MH, acc_MH, top_M, norm_M, position_M, keys, values, table, low, middle, last,
                stride_page, stride_token, H, scale_log2, soft_cap_log2, window,
                PAGE, BLOCK_B, BLOCK_H, H == BLOCK_H, False, False, False, SOFT_CAP, PRECISION,
            )  # fmt: skip
        acc_MH, top_M, norm_M = attend_blocks(
            q_MH, acc_MH, top_M, norm_M, position_M, keys, values, table, middle, last, last,
            stride_page, stride_token, H, scale_log2, soft_cap_log2, window,
            PAGE, BLOCK_B, BLOCK_H, H == BLOCK_H, True, True, WINDOW, SOFT_CAP, PRECISION,
        )  # fmt: skip
        out_MH, lse_M = finish(acc_MH, top_M, norm_M)
        if SCALED:
            out_MH *= tl.load(scales_ptr + N // G + kv_head)
        to = token * N + head
        tl.store(out_ptr + to[:, None] * H + h[None, :], out_MH.to(out_ptr.dtype.element_ty), mask=inside)
        if WITH_LSE:
            tl.store(lse_ptr + to, lse_M, mask=valid)


def paged_prefill(
    q_TNH: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    page_table_SP: torch.Tensor,
    plan: PrefillPlan,
    scale: float,
    window: int | None = None,
    soft_cap: float | None = None,
    lse_TN: torch.Tensor | None = None,
    tile: Tile | None = None,
    scales_2K: torch.Tensor | None = None,
) -> torch.Tensor:
    """Rows' new tokens, laid end to end, attend over their rows' pages: a query at position p sees keys in (p - window, p].

    keys, values: one layer's cache, [pages, page_size, K, H], this step's tokens written. page_table_SP: int32. One launch.
    Returns o_TNH; fills lse_TN (float32, natural log) if given. Tokens past the sum of query_lens are not written.
    scales_2K: of keys and values in 8 bits.
    """
    tokens, heads, dim = q_TNH.shape
    kv_heads = keys.shape[2]
    if q_TNH.stride(2) != 1 or q_TNH.stride(1) != dim or keys.stride() != values.stride() or keys.stride(3) != 1:
        raise ValueError("attention needs heads without gaps, and keys and values laid out alike")
    out_TNH = torch.empty((tokens, heads, dim), dtype=q_TNH.dtype, device=q_TNH.device)
    tile = tile or default_prefill_tile(dim, plan.block_rows, q_TNH.dtype, q_TNH.device)
    work = plan.work
    _prefill_kernel[(kv_heads, work.capacity)](
        q_TNH, keys, values, page_table_SP, out_TNH, lse_TN, work.items, work.first_U1[-1:], plan.query_lens_S, plan.kv_lens_S,
        scales_2K, q_TNH.stride(0), keys.stride(0), keys.stride(1), keys.stride(2), page_table_SP.stride(0), work.capacity,
        scale * LOG2_E, (soft_cap or 0.0) * LOG2_E, window or 0,
        N=heads, G=heads // kv_heads, H=dim, BLOCK_M=plan.block_rows, BLOCK_B=tile.block_keys,
        BLOCK_H=triton.next_power_of_2(dim), PAGE=keys.shape[1], WINDOW=window is not None,
        SCALED=scales_2K is not None, SOFT_CAP=soft_cap is not None,
        WITH_LSE=lse_TN is not None, PRECISION="ieee" if q_TNH.dtype == torch.float32 else "tf32",
        num_warps=tile.num_warps, num_stages=tile.num_stages, **launch_options(),
    )  # fmt: skip
    return out_TNH
