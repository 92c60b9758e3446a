"""The first of the largest entries of each row, in one launch. Reference: `raysgl.kernels.argmax`.

Rows are split over programs; the one that finishes last compares their winners. Where ranks have a part of the vocabulary each, it
then writes what it found into their memory, and compares theirs: in one 8-byte store each, with the number of the call, as
`raysgl.kernels.triton.all_reduce` does. Programs begin in the order of rows on every rank, so those that wait are waited for by none.
Legend: L rows, V vocabulary.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from raysgl.kernels.argmax import MOST_ROWS
from raysgl.kernels.sum_ranks import Peers
from raysgl.kernels.triton.runtime import launch_options, num_sms, workspace

BLOCK_V = 4096
"""Entries a program looks at at a time."""

MAX_SPLITS = 64


@triton.jit
def _finish(
    best, token, tokens_ptr, row, first, peers_ptr, RANK: tl.constexpr, RANKS: tl.constexpr, MOST: tl.constexpr,
):  # fmt: skip
    """The rank's winner is known: store it, or the best of all ranks' winners, the first of equal ones."""
    if RANKS == 1:
        tl.store(tokens_ptr + row, token.to(tl.int64))
    else:
        mine = tl.load(peers_ptr + RANK)
        calls = mine.to(tl.pointer_type(tl.int32)) + row
        call = tl.load(calls) + 1
        number = (call & 0xFF).to(tl.int64)
        place = (call & 1) * RANKS * MOST + row
        token = token.to(tl.int64) + first
        said = (best.to(tl.int32, bitcast=True).to(tl.int64) << 32) | (token << 8) | number
        for other in tl.static_range(1, RANKS):
            peer = (tl.load(peers_ptr + (RANK + other) % RANKS) + 4 * MOST).to(tl.pointer_type(tl.int64))
            tl.store(peer + place + RANK * MOST, said)
        own = (mine + 4 * MOST).to(tl.pointer_type(tl.int64)) + place
        for rank in tl.static_range(RANKS):
            heard = said
            if rank != RANK:
                heard = tl.load(own + rank * MOST, volatile=True)
                while (heard & 0xFF) != number:
                    heard = tl.load(own + rank * MOST, volatile=True)
            theirs = (heard >> 32).to(tl.int32).to(tl.float32, bitcast=True)
            named = (heard >> 8) & 0xFFFFFF
            if rank == 0:
                winner, most = named, theirs
            else:
                winner = tl.where(theirs > most, named, winner)
                most = tl.maximum(theirs, most)
        # Every thread has read the count for itself: one that came late would wait for a call that does not come.
        tl.debug_barrier()
        tl.store(calls, call)
        tl.store(tokens_ptr + row, winner)


@triton.jit(do_not_specialize=["first"])
def _argmax_kernel(
    logits_ptr, tokens_ptr, part_ptr, part_token_ptr, counter_ptr, peers_ptr, stride, vocab, first,
    BLOCK_V: tl.constexpr, SPLITS: tl.constexpr, BLOCK_SPLITS: tl.constexpr, RANK: tl.constexpr, RANKS: tl.constexpr,
    MOST: tl.constexpr, PDL: tl.constexpr,
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
        _finish(best, token, tokens_ptr, row, first, peers_ptr, RANK, RANKS, MOST)
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
            best = tl.max(parts, axis=0)
            winner = tl.min(tl.where(parts == best, tokens, 0x7FFFFFFF), axis=0)
            tl.store(counter_ptr + row, 0)
            _finish(best, tl.minimum(winner, vocab - 1), tokens_ptr, row, first, peers_ptr, RANK, RANKS, MOST)


def argmax(logits_LV: torch.Tensor) -> torch.Tensor:
    """int64 [L]. The logits may be of any float type; rows may be strided, their elements not. NaN never wins."""
    return _launch(logits_LV)


def memory(ranks: int) -> int:
    """Bytes of every rank that `argmax_of_ranks` needs: each row's count of calls, and two places for what each rank says of it."""
    return (4 + 2 * ranks * 8) * MOST_ROWS


def argmax_of_ranks(part_LV: torch.Tensor, first: int, peers: Peers) -> torch.Tensor:
    """int64 [L] on every rank: the argmax of all ranks' parts side by side. first: the first token of this rank's part.

    Up to MOST_ROWS rows. All ranks call with as many, in the same order. Vocabularies have fewer than 2^24 tokens. A part may have
    no columns.
    """
    if len(part_LV) > MOST_ROWS:
        raise ValueError(f"argmax_of_ranks takes up to {MOST_ROWS} rows, not {len(part_LV)}")
    return _launch(part_LV, first, peers)


def _launch(logits_LV: torch.Tensor, first: int = 0, peers: Peers | None = None) -> torch.Tensor:
    rows, vocab = logits_LV.shape
    device = logits_LV.device
    if logits_LV.stride(1) != 1:
        raise ValueError("argmax needs rows without gaps")
    tokens_L = torch.empty(rows, dtype=torch.int64, device=device)
    if not rows:
        return tokens_L
    blocks = max(1, triton.cdiv(vocab, BLOCK_V))
    wanted = max(1, min(blocks, MAX_SPLITS, triton.cdiv(4 * num_sms(device), rows)))
    # As many programs as have a block each, the blocks being dealt out evenly.
    splits = triton.cdiv(blocks, triton.cdiv(blocks, wanted))
    parts = workspace("argmax parts", rows * splits, torch.float32, device)
    part_tokens = workspace("argmax tokens", rows * splits, torch.int32, device)
    counters = workspace("argmax counters", rows, torch.int32, device)
    _argmax_kernel[(splits, rows)](
        logits_LV, tokens_L, parts, part_tokens, counters, peers and peers.addresses, logits_LV.stride(0), vocab, first,
        BLOCK_V=BLOCK_V, SPLITS=splits, BLOCK_SPLITS=triton.next_power_of_2(splits), RANK=peers.rank if peers else 0,
        RANKS=peers.size if peers else 1, MOST=MOST_ROWS, num_warps=8, **launch_options(),
    )  # fmt: skip
    return tokens_L
