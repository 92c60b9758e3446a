"""The first of the largest entries of each row, in one launch. Reference: `raysgl.kernels.argmax`.

Rows are split over programs; the one that finishes last compares their winners. Legend: L rows, V vocabulary.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from raysgl.kernels.triton.runtime import launch_options, num_sms, workspace

BLOCK_V = 4096
"""Entries a program looks at at a time."""

MAX_SPLITS = 64


@triton.jit
def _argmax_kernel(
    logits_ptr, tokens_ptr, part_ptr, part_token_ptr, counter_ptr, stride, vocab,
    BLOCK_V: tl.constexpr, SPLITS: tl.constexpr, BLOCK_SPLITS: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    split = tl.program_id(0)
    row = tl.program_id(1).to(tl.int64)
    v = tl.arange(0, BLOCK_V)
    if PDL:
        gdc_wait()
        gdc_launch_dependents()
    span = tl.cdiv(tl.cdiv(vocab, BLOCK_V), SPLITS) * BLOCK_V
    low = split * span
    best_V = tl.full([BLOCK_V], float("-inf"), tl.float32)
    # A row without a finite entry gives its first one.
    token_V = low + v
    for start in range(low, tl.minimum(low + span, vocab), BLOCK_V):
        n = start + v
        score_V = tl.load(logits_ptr + row * stride + n, mask=n < vocab, other=float("-inf")).to(tl.float32)
        better = score_V > best_V  # false for NaN
        best_V = tl.where(better, score_V, best_V)
        token_V = tl.where(better, n, token_V)
    best = tl.max(best_V, axis=0)
    token = tl.min(tl.where(best_V == best, token_V, 0x7FFFFFFF), axis=0)
    if SPLITS == 1:
        tl.store(tokens_ptr + row, token.to(tl.int64))
    else:
        tl.store(part_ptr + row * SPLITS + split, best)
        tl.store(part_token_ptr + row * SPLITS + split, token)
        tl.debug_barrier()
        arrived = tl.atomic_add(counter_ptr + row, 1, sem="acq_rel")
        if arrived == SPLITS - 1:
            s = tl.arange(0, BLOCK_SPLITS)
            at = row * SPLITS + s
            parts = tl.load(part_ptr + at, mask=s < SPLITS, other=float("-inf"), cache_modifier=".cg")
            tokens = tl.load(part_token_ptr + at, mask=s < SPLITS, other=0x7FFFFFFF, cache_modifier=".cg")
            winner = tl.min(tl.where(parts == tl.max(parts, axis=0), tokens, 0x7FFFFFFF), axis=0)
            tl.store(tokens_ptr + row, tl.minimum(winner, vocab - 1).to(tl.int64))
            tl.store(counter_ptr + row, 0)


def argmax(logits_LV: torch.Tensor) -> torch.Tensor:
    """int64 [L]. The logits may be of any float type; rows may be strided, their elements not. NaN never wins."""
    rows, vocab = logits_LV.shape
    device = logits_LV.device
    if logits_LV.stride(1) != 1:
        raise ValueError("argmax needs rows without gaps")
    tokens_L = torch.empty(rows, dtype=torch.int64, device=device)
    if not rows:
        return tokens_L
    blocks = triton.cdiv(vocab, BLOCK_V)
    wanted = max(1, min(blocks, MAX_SPLITS, triton.cdiv(4 * num_sms(device), rows)))
    # As many programs as have a block each, the blocks being dealt out evenly.
    splits = triton.cdiv(blocks, triton.cdiv(blocks, wanted))
    parts = workspace("argmax parts", rows * splits, torch.float32, device)
    part_tokens = workspace("argmax tokens", rows * splits, torch.int32, device)
    counters = workspace("argmax counters", rows, torch.int32, device)
    _argmax_kernel[(splits, rows)](
        logits_LV, tokens_L, parts, part_tokens, counters, logits_LV.stride(0), vocab,
        BLOCK_V=BLOCK_V, SPLITS=splits, BLOCK_SPLITS=triton.next_power_of_2(splits), num_warps=8, **launch_options(),
    )  # fmt: skip
    return tokens_L
