"""Temperature, top-k, top-p, min-p and the draw in one launch, without sorting. Reference: `raysgl.sampling.filters`.

One program does one row, so that nothing waits for other programs and a row's token does not depend on the batch. It reads the row
once for its maximum; once or a few times for how many tokens, and how much mass, lie above four pivots, which close in on the threshold
until few candidates are left between two of them; once to collect those, for a bisection over their bits; and once for the
draw. Legend: L rows, V vocabulary; R x C the tokens read at a time, C of them side by side in one thread.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from raysgl.kernels.triton.runtime import launch_options, workspace

WARPS = 16
CANDIDATES = 4096
"""So few are bisected in registers. The pivots are done when no more are left between two of them."""
LINEAR_PASSES = 6
"""Passes whose pivots are even in x. What is not found then (thousands of equal logits) is searched by bits, which always ends."""
VECTOR_BYTES = 16
"""What one thread loads at once."""


@triton.jit
def _key(x):
    """float32 -> int32 in the same order."""
    bits = x.to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def _value(key):
    """The inverse of `_key`."""
    return (key ^ ((key >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


@triton.jit
def _scaled(row_ptr, start, token_RC, vocab, top, temperature):
    """(logits - top) / temperature of the next tokens; -inf past the vocabulary's end."""
    n_RC = start + token_RC
    logits_RC = tl.load(row_ptr + n_RC, mask=n_RC < vocab, other=float("-inf")).to(tl.float32)
    return (logits_RC - top) / temperature


@triton.jit
def _above(x_RC, weight_RC, pivot, mass_R, count_R):
    """Add the mass and the number of what lies above the pivot."""
    above_RC = x_RC > pivot
    mass_R += tl.sum(tl.where(above_RC, weight_RC, 0.0), axis=1)
    count_R += tl.sum(above_RC.to(tl.int32), axis=1)
    return mass_R, count_R


@triton.jit
def _close_in(pivot, mass_R, count_R, need, top_k, low, high, low_count, high_count, high_mass):
    """Pivots must come from the highest down: the first that has enough above it is the new lower end."""
    mass, count = tl.sum(mass_R, axis=0), tl.sum(count_R, axis=0)
    enough = (count >= top_k) | (mass >= need)
    first = enough & (pivot > low)
    low_count = tl.where(first, count, low_count)
    low = tl.where(first, pivot, low)
    lower = (enough == 0) & (pivot < high)
    high_count = tl.where(lower, count, high_count)
    high_mass = tl.where(lower, mass, high_mass)
    high = tl.where(lower, pivot, high)
    return low, high, low_count, high_count, high_mass


@triton.jit
def _threshold(
    row_ptr, candidates_ptr, token_RC, vocab, top, temperature, top_p, top_k,
    R: tl.constexpr, C: tl.constexpr, CANDIDATES: tl.constexpr, LINEAR_PASSES: tl.constexpr,
):  # fmt: skip
    """The largest x that does not have enough above it, or just below: what is above it is kept."""
    # `low` has enough above it (if anything has), `high` has not: the least kept x lies in (low, high].
    low = tl.full([], float("-inf"), tl.float32)
    high = _value(tl.full([], -1, tl.int32))  # -0.0: between it and 0.0 no pivot would part anything
    low_count = tl.full([], 0, tl.int32) + vocab
    high_count = tl.full([], 0, tl.int32)
    high_mass = tl.full([], 0.0, tl.float32)
    need = tl.full([], 0.0, tl.float32)
    passes = tl.full([], 0, tl.int32)
    # Where language models' nuclei end.
    p1 = tl.full([], -1.5, tl.float32)
    p2 = tl.full([], -3.5, tl.float32)
    p3 = tl.full([], -7.0, tl.float32)
    p4 = tl.full([], -14.0, tl.float32)
    while (low_count - high_count > CANDIDATES) & (_key(high) - _key(low) > 1):
        total_R = tl.zeros([R], tl.float32)
        m1, m2, m3, m4 = total_R, total_R, total_R, total_R
        c1 = tl.zeros([R], tl.int32)
        c2, c3, c4 = c1, c1, c1
        for start in range(0, vocab, R * C):
            x_RC = _scaled(row_ptr, start, token_RC, vocab, top, temperature)
            weight_RC = tl.exp(x_RC)
            total_R += tl.sum(weight_RC, axis=1)
            m1, c1 = _above(x_RC, weight_RC, p1, m1, c1)
            m2, c2 = _above(x_RC, weight_RC, p2, m2, c2)
            m3, c3 = _above(x_RC, weight_RC, p3, m3, c3)
            m4, c4 = _above(x_RC, weight_RC, p4, m4, c4)
        need = top_p * tl.sum(total_R, axis=0)
        low, high, low_count, high_count, high_mass = _close_in(
            p1, m1, c1, need, top_k, low, high, low_count, high_count, high_mass
        )
        low, high, low_count, high_count, high_mass = _close_in(
            p2, m2, c2, need, top_k, low, high, low_count, high_count, high_mass
        )
        low, high, low_count, high_count, high_mass = _close_in(
            p3, m3, c3, need, top_k, low, high, low_count, high_count, high_mass
        )
        low, high, low_count, high_count, high_mass = _close_in(
            p4, m4, c4, need, top_k, low, high, low_count, high_count, high_mass
        )
        passes += 1
        # Without a lower end yet, one twice as far is tried.
        step = (high - tl.maximum(low, 2.0 * high)) * 0.2
        p1, p2, p3, p4 = high - step, high - 2.0 * step, high - 3.0 * step, high - 4.0 * step
        if passes >= LINEAR_PASSES:
            least, most = _key(low), _key(high)
            stride = tl.maximum((most - least) // 5, 1)
            p1 = _value(tl.maximum(most - stride, least))
            p2 = _value(tl.maximum(most - 2 * stride, least))
            p3 = _value(tl.maximum(most - 3 * stride, least))
            p4 = _value(tl.maximum(most - 4 * stride, least))
    if _key(high) - _key(low) > 1:
        found = tl.full([], 0, tl.int32)
        total_R = tl.zeros([R], tl.float32)
        for start in range(0, vocab, R * C):
            x_RC = _scaled(row_ptr, start, token_RC, vocab, top, temperature)
            if passes == 0:
                total_R += tl.sum(tl.exp(x_RC), axis=1)
            inside_RC = ((x_RC > low) & (x_RC <= high)).to(tl.int32)
            counts_R = tl.sum(inside_RC, axis=1)
            if tl.sum(counts_R, axis=0) > 0:
                before_R = found + tl.cumsum(counts_R, axis=0) - counts_R
                at_RC = before_R[:, None] + tl.cumsum(inside_RC, axis=1) - inside_RC
                tl.store(candidates_ptr + at_RC, x_RC, mask=(inside_RC > 0) & (at_RC < CANDIDATES))
                found += tl.sum(counts_R, axis=0)
        if passes == 0:  # a vocabulary so small that no pivots were needed
            need = top_p * tl.sum(total_R, axis=0)
        tl.debug_barrier()
        k = tl.arange(0, CANDIDATES)
        x_K = tl.load(candidates_ptr + k, mask=k < found, other=float("-inf"), cache_modifier=".cg")
        weight_K = tl.exp(x_K)
        least, most = _key(low), _key(high)
        while most - least > 1:
            middle = least + (most - least) // 2
            above_K = x_K > _value(middle)
            count = high_count + tl.sum(above_K.to(tl.int32), axis=0)
            mass = high_mass + tl.sum(tl.where(above_K, weight_K, 0.0), axis=0)
            if (count >= top_k) | (mass >= need):
                least = middle
            else:
                most = middle
        low = _value(least)
    return low


@triton.jit
def _weights(row_ptr, start, token_RC, vocab, top, temperature, low, log_min_p):
    """exp(x) of the tokens that are kept, else 0."""
    x_RC = _scaled(row_ptr, start, token_RC, vocab, top, temperature)
    return tl.where((x_RC > low) & (x_RC >= log_min_p), tl.exp(x_RC), 0.0)


@triton.jit
def _first_above(weight_N, n, target, N: tl.constexpr):
    """The first index whose cumulated weight exceeds the target, and what the target has to make up inside of it.

    Rounding may leave the target at the very end, where nothing exceeds it: then the largest weight is taken.
    """
    sums_N = tl.cumsum(weight_N, axis=0)
    index = tl.min(tl.where((sums_N > target) & (weight_N > 0.0), n, N), axis=0)
    largest = tl.min(tl.where(weight_N == tl.max(weight_N, axis=0), n, N), axis=0)
    index = tl.where(index == N, largest, index)
    before = tl.sum(tl.where(n < index, weight_N, 0.0), axis=0)
    return index, tl.maximum(target - before, 0.0)


@triton.jit
def _draw_kernel(
    logits_ptr, temperature_ptr, top_p_ptr, top_k_ptr, log_min_p_ptr, uniform_ptr, tokens_ptr, candidates_ptr,
    stride, stride_numbers, vocab,
    R: tl.constexpr, C: tl.constexpr, BLOCKS: tl.constexpr, CANDIDATES: tl.constexpr, LINEAR_PASSES: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    row_ptr = logits_ptr + row * stride
    r, c = tl.arange(0, R), tl.arange(0, C)
    token_RC = r[:, None] * C + c[None, :]
    if PDL:
        gdc_wait()
        gdc_launch_dependents()
    number = row * stride_numbers
    temperature = tl.load(temperature_ptr + number).to(tl.float32)
    top_p = tl.load(top_p_ptr + number).to(tl.float32)
    top_k = tl.load(top_k_ptr + number).to(tl.int32)
    log_min_p = tl.load(log_min_p_ptr + number).to(tl.float32)
    uniform = tl.load(uniform_ptr + number)

    best_R = tl.full([R], float("-inf"), tl.float32)
    for start in range(0, vocab, R * C):
        n_RC = start + token_RC
        logits_RC = tl.load(row_ptr + n_RC, mask=n_RC < vocab, other=float("-inf")).to(tl.float32)
        best_R = tl.maximum(best_R, tl.max(logits_RC, axis=1))
    top = tl.max(best_R, axis=0)

    low = tl.full([], float("-inf"), tl.float32)
    if temperature <= 0.0:  # greedy: what is as large as the largest, and the first of it
        temperature = tl.full([], 1.0, tl.float32)
        log_min_p = tl.full([], 0.0, tl.float32)
        uniform = tl.full([], 0.0, tl.float64)
    elif (top_k < vocab) | (top_p < 1.0):
        low = _threshold(
            row_ptr, candidates_ptr + row * CANDIDATES, token_RC, vocab, top, temperature, top_p, top_k,
            R, C, CANDIDATES, LINEAR_PASSES,
        )  # fmt: skip

    # The block of tokens that the draw falls into, then its line of C, then the token.
    b = tl.arange(0, BLOCKS)
    sums_B = tl.zeros([BLOCKS], tl.float64)
    for block in range(tl.cdiv(vocab, R * C)):
        weight_RC = _weights(row_ptr, block * R * C, token_RC, vocab, top, temperature, low, log_min_p)
        sums_B = tl.where(b == block, tl.sum(tl.sum(weight_RC, axis=1).to(tl.float64), axis=0), sums_B)
    block, target = _first_above(sums_B, b, uniform * tl.sum(sums_B, axis=0), BLOCKS)
    weight_RC = _weights(row_ptr, block * R * C, token_RC, vocab, top, temperature, low, log_min_p)
    line, target = _first_above(tl.sum(weight_RC, axis=1).to(tl.float64), r, target, R)
    weight_C = tl.sum(tl.where(r[:, None] == line, weight_RC, 0.0), axis=0).to(tl.float64)
    column, target = _first_above(weight_C, c, target, C)
    token = block * (R * C) + line * C + column
    tl.store(tokens_ptr + row, tl.minimum(token, vocab - 1).to(tl.int64))


def draw(
    logits_LV: torch.Tensor,
    temperature_L: torch.Tensor,
    top_p_L: torch.Tensor,
    top_k_L: torch.Tensor,
    log_min_p_L: torch.Tensor,
    uniform_L: torch.Tensor,
    *,
    candidates: int = CANDIDATES,
) -> torch.Tensor:
    """One token of each row, int64 [L]: the inverse of the kept tokens' cumulated weights at `uniform_L`, in token order.

    Logits of any float type; rows may be strided, their elements not. The numbers are float64 of one stride (columns of one matrix).
    temperature: 0 for the first of the largest. top_p: 1 or more for none. top_k: V for none. log_min_p: -inf for none.
    """
    rows, vocab = logits_LV.shape
    device = logits_LV.device
    numbers = (temperature_L, top_p_L, top_k_L, log_min_p_L, uniform_L)
    if logits_LV.stride(1) != 1 or len({tensor.stride(0) for tensor in numbers}) > 1:
        raise ValueError("draw needs rows without gaps, and numbers of one stride")
    tokens_L = torch.empty(rows, dtype=torch.int64, device=device)
    if not rows:
        return tokens_L
    columns = VECTOR_BYTES // logits_LV.element_size()
    lines = min(32 * WARPS, max(32, triton.next_power_of_2(triton.cdiv(vocab, columns))))
    blocks = triton.next_power_of_2(triton.cdiv(vocab, lines * columns))
    scratch = workspace("draw candidates", rows * candidates, torch.float32, device)
    _draw_kernel[(rows,)](
        logits_LV, *numbers, tokens_L, scratch, logits_LV.stride(0), temperature_L.stride(0), vocab,
        R=lines, C=columns, BLOCKS=blocks, CANDIDATES=candidates, LINEAR_PASSES=LINEAR_PASSES, num_warps=WARPS,
        **launch_options(),
    )  # fmt: skip
    return tokens_L
