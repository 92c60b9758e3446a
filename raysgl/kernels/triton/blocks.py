"""The inner loop that all attention kernels share: a tile of queries against blocks of keys, with a running softmax.

Milakov and Gimelshein 2018 (online softmax), Dao et al. 2022 (tiling). Scores are kept in units of log2, so that exp2 serves.
Keys and values are gathered token by token through the page table, so any page size works.

Legend of tensors in kernels: M query rows of the tile (tokens times the G heads that share a key head), B keys of a block.
"""

from __future__ import annotations

import triton
import triton.language as tl

LOG2_E = 1.4426950408889634


@triton.jit
def attend_blocks(
    q_MH, acc_MH, top_M, norm_M, position_M, keys_ptr, values_ptr, table_ptr, low, high, end,
    stride_page, stride_token, head_dim, scale_log2, soft_cap_log2, window,
    PAGE: tl.constexpr, BLOCK_B: tl.constexpr, BLOCK_H: tl.constexpr, WHOLE_H: tl.constexpr, MASKED: tl.constexpr,
    CAUSAL: tl.constexpr, WINDOW: tl.constexpr, SOFT_CAP: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Attend keys [low, high) in blocks. Without MASKED, high - low is a multiple of the block and every query sees every key.

    end: of the row's keys; no page of later ones is looked up. With MASKED: keys before `end`; CAUSAL: up to the query's position; WINDOW: less than `window` behind it.
    keys_ptr, values_ptr: at the key head's first element; table_ptr: at the row's first page.
    Returns (acc_MH, top_M, norm_M): sums of values weighted by 2^(score - top), the highest score, and the sum of weights.
    """
    h = tl.arange(0, BLOCK_H)
    b = tl.arange(0, BLOCK_B)
    # The next block's pages are read a round ahead: read in the same round they would be one of the pipeline's stages, and Triton (3.6,
    # 3 stages) would have no second block of keys on its way while it works on the first.
    next_page = tl.load(table_ptr + (low + b) // PAGE, mask=low + b < end, other=0)
    for start in range(low, high, BLOCK_B):
        n = start + b
        offset = next_page.to(tl.int64) * stride_page + (n % PAGE) * stride_token
        ahead = n + BLOCK_B
        next_page = tl.load(table_ptr + ahead // PAGE, mask=ahead < end, other=0)
        if WHOLE_H and not MASKED:
            k_HB = tl.load(keys_ptr + offset[None, :] + h[:, None])
            v_BH = tl.load(values_ptr + offset[:, None] + h[None, :])
        else:
            k_HB = tl.load(
                keys_ptr + offset[None, :] + h[:, None], mask=(n < end)[None, :] & (h < head_dim)[:, None], other=0.0
            )
            v_BH = tl.load(
                values_ptr + offset[:, None] + h[None, :], mask=(n < end)[:, None] & (h < head_dim)[None, :], other=0.0
            )
        score_MB = tl.dot(q_MH, k_HB.to(q_MH.dtype), input_precision=PRECISION) * scale_log2
        if SOFT_CAP:
            # cap * tanh(x / cap), with tanh(y) = 1 - 2 / (exp(2 y) + 1); exp(2 y) = exp2(2 y log2 e).
            power_MB = tl.exp2(score_MB * (2.0 * 1.4426950408889634 / soft_cap_log2))
            score_MB = soft_cap_log2 * (1.0 - 2.0 / (power_MB + 1.0))
        if MASKED:
            seen_MB = (n < end)[None, :]
            if CAUSAL:
                seen_MB = seen_MB & (n[None, :] <= position_M[:, None])
            if WINDOW:
                seen_MB = seen_MB & (n[None, :] > position_M[:, None] - window)
            score_MB = tl.where(seen_MB, score_MB, float("-inf"))
        new_top_M = tl.maximum(top_M, tl.max(score_MB, axis=1))
        # A query that has seen nothing yet has -inf here; minus itself it would be NaN.
        base_M = tl.where(new_top_M == float("-inf"), 0.0, new_top_M) if MASKED else new_top_M
        weight_MB = tl.exp2(score_MB - base_M[:, None])
        shrink_M = tl.exp2(top_M - base_M)
        norm_M = norm_M * shrink_M + tl.sum(weight_MB, axis=1)
        acc_MH = acc_MH * shrink_M[:, None]
        acc_MH = tl.dot(weight_MB.to(q_MH.dtype), v_BH.to(q_MH.dtype), acc_MH, input_precision=PRECISION)
        top_M = new_top_M
    return acc_MH, top_M, norm_M


@triton.jit
def finish(acc_MH, top_M, norm_M):
    """(output, log-sum-exp of the scores in natural logarithms). Queries that saw nothing: 0 and -inf."""
    seen_M = norm_M > 0.0
    safe_M = tl.where(seen_M, norm_M, 1.0)
    lse_M = tl.where(seen_M, (top_M + tl.log2(safe_M)) * 0.6931471805599453, float("-inf"))
    return acc_MH / safe_M[:, None], lse_M
