"""The next token in one launch: greedy, or drawn by the Gumbel-max trick, without sorting or normalising.

argmax(logits / temperature + g), g = -log(-log u) for every token, is a draw from the softmax (Gumbel 1954; Maddison et al. 2014).
u is a hash of (seed, index of the output token, vocabulary entry), so a draw depends neither on the batch nor on the device.
Rows are split over programs; the one that finishes last compares their winners. Legend: S rows, V vocabulary.
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
def _mix(x):
    """A 32-bit finaliser of low bias, found by search (github.com/skeeto/hash-prospector, two rounds: 21f0aaad, d35a2d97)."""
    x ^= x >> 16
    x *= 0x21F0AAAD
    x ^= x >> 15
    x *= 0xD35A2D97
    x ^= x >> 15
    return x


@triton.jit
def _gumbel(token, key, key2):
    """Standard Gumbel noise of each token (uint32). All 32 bits count towards the tail of large values."""
    bits = _mix(_mix(token + key) ^ key2)
    u = (bits.to(tl.float32) + 0.5) * 2.3283064365386963e-10
    # -log(1 - u), for small u by its series: 1 - u would drop the low bits.
    exponential = tl.where(
        u < 0.01, u * (1.0 + u * (0.5 + u * (0.33333333 + u * 0.25))), -tl.log(1.0 - tl.minimum(u, 0.99999994))
    )
    return -tl.log(exponential)


@triton.jit
def _pick_kernel(
    logits_ptr, temperature_ptr, seed_ptr, index_ptr, tokens_ptr, part_ptr, part_token_ptr, counter_ptr, stride, vocab,
    BLOCK_V: tl.constexpr, SPLITS: tl.constexpr, BLOCK_SPLITS: tl.constexpr, SAMPLE: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    split = tl.program_id(0)
    row = tl.program_id(1).to(tl.int64)
    v = tl.arange(0, BLOCK_V)
    if PDL:
        gdc_wait()
        gdc_launch_dependents()
    temperature = 0.0
    if SAMPLE:
        temperature = tl.load(temperature_ptr + row).to(tl.float32)
        seed = tl.load(seed_ptr + row).to(tl.int64)
        index = tl.load(index_ptr + row).to(tl.int64)
        key = _mix((seed & 0xFFFFFFFF).to(tl.uint32) ^ _mix(((seed >> 32) & 0xFFFFFFFF).to(tl.uint32) + 0x3C6EF372))
        key = _mix(key + _mix((index & 0xFFFFFFFF).to(tl.uint32) + 0x1B873593))
        key2 = _mix(key ^ 0x5BD1E995)
    span = tl.cdiv(tl.cdiv(vocab, BLOCK_V), SPLITS) * BLOCK_V
    low = split * span
    best_V = tl.full([BLOCK_V], float("-inf"), tl.float32)
    # A row without a finite entry gives its first one.
    token_V = low + v
    for start in range(low, tl.minimum(low + span, vocab), BLOCK_V):
        n = start + v
        score_V = tl.load(logits_ptr + row * stride + n, mask=n < vocab, other=float("-inf")).to(tl.float32)
        if SAMPLE:  # noqa: SIM102 (the compiler decides this, the program the next)
            if temperature > 0.0:
                score_V = score_V / temperature + _gumbel(n.to(tl.uint32), key, key2)
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


def argmax(logits_SV: torch.Tensor, tokens_S: torch.Tensor | None = None) -> torch.Tensor:
    """The first of the largest entries of each row, int64 [S] (into tokens_S if given). NaN never wins. One launch."""
    return _launch(logits_SV, None, None, None, tokens_S)


def sample(
    logits_SV: torch.Tensor,
    temperature_S: torch.Tensor,
    seed_S: torch.Tensor,
    index_S: torch.Tensor,
    tokens_S: torch.Tensor | None = None,
) -> torch.Tensor:
    """A draw from softmax(logits / temperature) of each row, int64 [S] (into tokens_S if given). One launch.

    temperature_S: float; 0: greedy. seed_S: int64. index_S: which output token of its sequence this is. -inf entries are never drawn.
    """
    return _launch(logits_SV, temperature_S, seed_S, index_S, tokens_S)


def _launch(
    logits_SV: torch.Tensor,
    temperature_S: torch.Tensor | None,
    seed_S: torch.Tensor | None,
    index_S: torch.Tensor | None,
    tokens_S: torch.Tensor | None,
) -> torch.Tensor:
    rows, vocab = logits_SV.shape
    device = logits_SV.device
    if logits_SV.stride(1) != 1:
        raise ValueError("sampling needs rows of logits without gaps")
    tokens_S = torch.empty(rows, dtype=torch.int64, device=device) if tokens_S is None else tokens_S
    if not rows:
        return tokens_S
    blocks = triton.cdiv(vocab, BLOCK_V)
    wanted = max(1, min(blocks, MAX_SPLITS, triton.cdiv(4 * num_sms(device), rows)))
    # As many programs as have a block each, the blocks being dealt out evenly.
    splits = triton.cdiv(blocks, triton.cdiv(blocks, wanted))
    parts = workspace("sampling parts", rows * splits, torch.float32, device)
    part_tokens = workspace("sampling tokens", rows * splits, torch.int32, device)
    counters = workspace("sampling counters", rows, torch.int32, device)
    _pick_kernel[(splits, rows)](
        logits_SV, temperature_S, seed_S, index_S, tokens_S, parts, part_tokens, counters, logits_SV.stride(0), vocab,
        BLOCK_V=BLOCK_V, SPLITS=splits, BLOCK_SPLITS=triton.next_power_of_2(splits), SAMPLE=temperature_S is not None,
        num_warps=8, **launch_options(),
    )  # fmt: skip
    return tokens_S
