"""The sum over tensor-parallel ranks with what follows it, the residual addition and RMSNorm, in one launch.

Every rank writes its part into the other ranks' memory, one way over the link, and adds up all of it in the order of ranks, so all get the
same bits. How a rank knows that a part has arrived depends on how many rows there are:

- few: the number of the call stands beside each word, in one 8-byte store. Who reads until all numbers are right has the data: no flags, no
  fences (as in NCCL's LL protocol), but twice the bytes.
- many: the bare words, and behind them, released at system scope, one flag for each program. (A flag behind which the others read from
  the rank's own memory, two ways over the link, was 1.4 to 2.2 times slower than the first on two H100s at every size.)

A row's place in memory belongs to one program (row % programs), which counts its calls and alternates between two such
places. When a program is at its call n + 2, the other ranks have begun theirs of n + 1, so nobody still reads what it wrote at n. Both
kinds have their own memory and counters.

While the link is waited for, device memory has nothing to do. Further programs, the last of the grid, ask for the weights of the product that comes next, so that it finds
its first ones in the L2 cache: behind a wait of 3 us one row's product of 3072 x 4096 took 11.9 instead of 13.9 us, that of 14336 x 4096 and SiLU-mul 43.2
instead of 44.7; behind a wait of 11 us 256 rows' took 25.0 and 65.2 instead of 26.0 and 66.9.

Reference: `raysgl.distributed.TPGroup.all_reduce` and `raysgl.kernels.norm.add_rms_norm`. Legend: `raysgl.kernels.batch`; a word is two
elements of a half type.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from raysgl.kernels.sum_ranks import Peers, most_rows
from raysgl.kernels.triton.prefetch import prefetch_lines
from raysgl.kernels.triton.runtime import INTERPRETED, launch_options

PROGRAMS = 2 if INTERPRETED else 128
"""They wait for each other, so all must run at once: fewer than an H100 has SMs."""
FEW_ROWS = 4 if INTERPRETED else 64
FEW_SENT = 3 * 2**17
"""Up to so many rows, and elements that a rank sends, the number of the call travels with each word: of two H100s, 64 rows of 4096 take 7.0 us
so and 7.1 with flags, 32 of 8192 8.1 and 7.9; of four H200s, 32 of 4096 10.2 and 10.7, 64 14.7 and 13.4."""
DATA = 1024
"""Where a rank's words of few rows begin in its memory, behind the programs' counters of calls."""
AHEAD = 2 if INTERPRETED else 132
"""Programs that ask for the next product's weights."""
AHEAD_BYTES = {16: 8 << 20}
"""Up to so many rows, so many bytes of them: in the time of a short wait no more can come."""
MOST_AHEAD = 24 << 20
"""For more rows. From 40 MiB on some leave the cache before they are used."""
PUSHING = 2 if INTERPRETED else 256
"""Programs for many rows, two on an SM: one waits for memory while the other computes."""
FLAGS = 4 * PUSHING
"""Bytes from the counters of these programs to the flags of all ranks, [RANKS, PUSHING]."""


@triton.jit
def _low(words, DTYPE: tl.constexpr):
    return (words & 0xFFFF).to(tl.uint16).to(DTYPE, bitcast=True).to(tl.float32)


@triton.jit
def _high(words, DTYPE: tl.constexpr):
    return ((words >> 16) & 0xFFFF).to(tl.uint16).to(DTYPE, bitcast=True).to(tl.float32)


@triton.jit
def _words(low, high, DTYPE: tl.constexpr):
    """The two rounded and put together."""
    low = low.to(DTYPE).to(tl.uint16, bitcast=True).to(tl.uint32)
    high = high.to(DTYPE).to(tl.uint16, bitcast=True).to(tl.uint32)
    return (low | (high << 16)).to(tl.int32, bitcast=True)


@triton.jit
def _finish(
    low, high, residual_ptr, weight_ptr, out_ptr, row, w, inside, words, eps, DTYPE: tl.constexpr, ADD: tl.constexpr
):  # fmt: skip
    """The sum of the ranks' parts is known: add it to the residual stream and normalise, or only store it."""
    at = row * words + w
    if ADD:
        before = tl.load(residual_ptr + at, mask=inside, other=0)
        stream = _words(low + _low(before, DTYPE), high + _high(before, DTYPE), DTYPE)
        tl.store(residual_ptr + at, stream, mask=inside)
        low, high = _low(stream, DTYPE), _high(stream, DTYPE)
        weight = tl.load(weight_ptr + w, mask=inside, other=0)
        scale = tl.rsqrt(tl.sum(low * low + high * high, axis=0) / (2 * words) + eps)
        low, high = low * scale * _low(weight, DTYPE), high * scale * _high(weight, DTYPE)
    tl.store(out_ptr + at, _words(low, high, DTYPE), mask=inside)


@triton.jit
def _sum_kernel(
    x_ptr, residual_ptr, weight_ptr, out_ptr, peers_ptr, calls_ptr, next_ptr, rows, words, most_rows, next_lines, eps,
    RANK: tl.constexpr, RANKS: tl.constexpr, DATA: tl.constexpr, BLOCK_W: tl.constexpr, DTYPE: tl.constexpr,
    ADD: tl.constexpr, AHEAD: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    program, programs = tl.program_id(0), tl.num_programs(0) - AHEAD
    if AHEAD:  # noqa: SIM102 - known when it is compiled
        if program >= programs:
            prefetch_lines(next_ptr, next_lines, program - programs, AHEAD)
    if PDL:
        gdc_wait()
        gdc_launch_dependents()  # few programs run here, and they wait for the link: the others may read weights meanwhile
    if program < programs:
        _sum(
            x_ptr, residual_ptr, weight_ptr, out_ptr, peers_ptr, calls_ptr, program, programs, rows, words, most_rows, eps,
            RANK, RANKS, DATA, BLOCK_W, DTYPE, ADD,
        )  # fmt: skip


@triton.jit
def _sum(
    x_ptr, residual_ptr, weight_ptr, out_ptr, peers_ptr, calls_ptr, program, programs, rows, words, most_rows, eps,
    RANK: tl.constexpr, RANKS: tl.constexpr, DATA: tl.constexpr, BLOCK_W: tl.constexpr, DTYPE: tl.constexpr, ADD: tl.constexpr,
):  # fmt: skip
    call = tl.load(calls_ptr + program) + 1
    half = (call & 1) * RANKS
    w = tl.arange(0, BLOCK_W)
    inside = w < words
    for row in range(program, rows, programs):
        mine = tl.load(x_ptr + row * words + w, mask=inside, other=0)
        packed = mine.to(tl.uint32, bitcast=True).to(tl.int64) | (call.to(tl.int64) << 32)
        at = ((half + RANK).to(tl.int64) * most_rows + row) * words
        for other in tl.static_range(1, RANKS):
            peer = (tl.load(peers_ptr + (RANK + other) % RANKS) + DATA).to(tl.pointer_type(tl.int64))
            tl.store(tl.multiple_of(peer, 16) + at + w, packed, mask=inside)
    own = tl.multiple_of((tl.load(peers_ptr + RANK) + DATA).to(tl.pointer_type(tl.int64)), 16)
    for row in range(program, rows, programs):
        low = tl.zeros([BLOCK_W], tl.float32)
        high = tl.zeros([BLOCK_W], tl.float32)
        for rank in tl.static_range(RANKS):
            if rank == RANK:
                part = tl.load(x_ptr + row * words + w, mask=inside, other=0)
            else:
                at = ((half + rank).to(tl.int64) * most_rows + row) * words
                packed = tl.load(own + at + w, mask=inside, other=0, volatile=True)
                missing = tl.max((((packed >> 32).to(tl.int32) != call) & inside).to(tl.int32), axis=0)
                while missing != 0:
                    packed = tl.load(own + at + w, mask=inside, other=0, volatile=True)
                    missing = tl.max((((packed >> 32).to(tl.int32) != call) & inside).to(tl.int32), axis=0)
                part = packed.to(tl.int32)
            low += _low(part, DTYPE)
            high += _high(part, DTYPE)
        _finish(low, high, residual_ptr, weight_ptr, out_ptr, row, w, inside, words, eps, DTYPE, ADD)
    # Every warp has read the count for itself: of a row that one warp holds, one that came late would wait for a call that does not come.
    tl.debug_barrier()
    tl.store(calls_ptr + program, call)


@triton.jit(do_not_specialize=["rows"])
def _push_kernel(
    x_ptr, residual_ptr, weight_ptr, out_ptr, peers_ptr, next_ptr, rows, words, most_rows, start, next_lines, eps,
    RANK: tl.constexpr, RANKS: tl.constexpr, PUSHING: tl.constexpr, BLOCK_W: tl.constexpr, DTYPE: tl.constexpr,
    ADD: tl.constexpr, AHEAD: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """start: where this kind's memory begins: counters, flags, words."""
    program, programs = tl.program_id(0), tl.num_programs(0) - AHEAD
    if AHEAD:  # noqa: SIM102 - known when it is compiled
        if program >= programs:
            prefetch_lines(next_ptr, next_lines, program - programs, AHEAD)
    if PDL:
        gdc_wait()
        gdc_launch_dependents()
    if program < programs:
        _push(
            x_ptr, residual_ptr, weight_ptr, out_ptr, peers_ptr, program, programs, rows, words, most_rows, start, eps,
            RANK, RANKS, PUSHING, BLOCK_W, DTYPE, ADD,
        )  # fmt: skip


@triton.jit
def _push(
    x_ptr, residual_ptr, weight_ptr, out_ptr, peers_ptr, program, programs, rows, words, most_rows, start, eps,
    RANK: tl.constexpr, RANKS: tl.constexpr, PUSHING: tl.constexpr, BLOCK_W: tl.constexpr, DTYPE: tl.constexpr,
    ADD: tl.constexpr,
):  # fmt: skip
    mine = tl.load(peers_ptr + RANK) + start
    calls = mine.to(tl.pointer_type(tl.int32)) + program
    call = tl.load(calls) + 1
    half = (call & 1) * RANKS
    w = tl.arange(0, BLOCK_W)
    inside = w < words
    for row in range(program, rows, programs):
        part = tl.load(x_ptr + row * words + w, mask=inside, other=0)
        at = ((half + RANK).to(tl.int64) * most_rows + row) * words
        for other in tl.static_range(1, RANKS):
            peer = tl.load(peers_ptr + (RANK + other) % RANKS) + start + (RANKS + 1) * PUSHING * 4
            tl.store(tl.multiple_of(peer.to(tl.pointer_type(tl.int32)), 16) + at + w, part, mask=inside)
    tl.debug_barrier()
    for other in tl.static_range(1, RANKS):
        flags = tl.load(peers_ptr + (RANK + other) % RANKS) + start + PUSHING * 4
        tl.atomic_xchg(flags.to(tl.pointer_type(tl.int32)) + RANK * PUSHING + program, call, sem="release", scope="sys")
    for other in tl.static_range(1, RANKS):
        flag = (mine + PUSHING * 4).to(tl.pointer_type(tl.int32)) + ((RANK + other) % RANKS) * PUSHING + program
        # A rank that needs nothing more of this call may be at the next one already.
        seen = tl.atomic_add(flag, 0, sem="acquire", scope="sys")
        while seen - call < 0:
            seen = tl.atomic_add(flag, 0, sem="acquire", scope="sys")
    tl.debug_barrier()
    own = tl.multiple_of((mine + (RANKS + 1) * PUSHING * 4).to(tl.pointer_type(tl.int32)), 16)
    for row in range(program, rows, programs):
        low = tl.zeros([BLOCK_W], tl.float32)
        high = tl.zeros([BLOCK_W], tl.float32)
        for rank in tl.static_range(RANKS):
            if rank == RANK:
                part = tl.load(x_ptr + row * words + w, mask=inside, other=0)
            else:
                at = ((half + rank).to(tl.int64) * most_rows + row) * words
                part = tl.load(own + at + w, mask=inside, other=0, volatile=True)
            low += _low(part, DTYPE)
            high += _high(part, DTYPE)
        _finish(low, high, residual_ptr, weight_ptr, out_ptr, row, w, inside, words, eps, DTYPE, ADD)
    tl.store(calls, call)


def _start_of_many(ranks: int, dim: int) -> int:
    """Where the memory of many rows begins, behind that of few."""
    return DATA + 2 * ranks * FEW_ROWS * dim * 4


def memory(ranks: int, dim: int) -> int:
    """Bytes of every rank that calls with rows of `dim` elements need."""
    return _start_of_many(ranks, dim) + (ranks + 1) * FLAGS + 2 * ranks * most_rows(ranks, dim) * dim * 2


def sum_ranks(
    part_TD: torch.Tensor,
    peers: Peers,
    residual_TD: torch.Tensor | None = None,
    weight_D: torch.Tensor | None = None,
    eps: float = 0.0,
    next_weight: torch.Tensor | None = None,
    few: bool | None = None,
) -> torch.Tensor:
    """The sum of all ranks' parts. With residual_TD: it receives the sum, and its RMSNorm by weight_D is returned.

    Up to `most_rows` contiguous rows of a half type with an even number of elements. All ranks call with the same shape, in the same
    order; a group calls with one `dim` only. next_weight: of the product that comes next; some of it is asked for meanwhile.
    few: for measurements: as few rows, up to FEW_ROWS, or as many.
    """
    rows, dim = part_TD.shape
    most = most_rows(peers.size, dim)
    if not part_TD.is_contiguous() or part_TD.element_size() != 2 or dim % 2 or rows > most:
        raise ValueError(f"sum_ranks takes up to {most} contiguous rows of a half type, not {rows} of {part_TD.dtype}")
    if residual_TD is not None and not residual_TD.is_contiguous():
        raise ValueError("sum_ranks needs a contiguous residual stream")
    out_TD = torch.empty_like(part_TD)
    x, out = part_TD.view(torch.int32), out_TD.view(torch.int32)
    residual = x if residual_TD is None else residual_TD.view(torch.int32)
    weight = x if weight_D is None else weight_D.view(torch.int32)
    next_lines = 0
    if next_weight is not None:
        wanted = next((most for up_to, most in AHEAD_BYTES.items() if rows <= up_to), MOST_AHEAD)
        next_lines = min(wanted, next_weight.numel() * next_weight.element_size()) // 128
    ahead = AHEAD if next_lines else 0
    options = {
        "AHEAD": ahead,
        "RANK": peers.rank,
        "RANKS": peers.size,
        "BLOCK_W": triton.next_power_of_2(dim // 2),
        "ADD": residual_TD is not None,
        "DTYPE": tl.bfloat16 if part_TD.dtype == torch.bfloat16 else tl.float16,
        "num_warps": 8,
        **launch_options(),
    }
    if rows and (rows <= FEW_ROWS and part_TD.numel() * (peers.size - 1) <= FEW_SENT if few is None else few):
        _sum_kernel[(min(rows, PROGRAMS) + ahead,)](
            x, residual, weight, out, peers.addresses, peers.own.view(torch.int32), next_weight, rows, dim // 2, FEW_ROWS, next_lines,
            eps, DATA=DATA, **options,
        )  # fmt: skip
    elif rows:
        _push_kernel[(min(rows, PUSHING) + ahead,)](
            x, residual, weight, out, peers.addresses, next_weight, rows, dim // 2, most, _start_of_many(peers.size, dim), next_lines,
            eps, PUSHING=PUSHING, **options,
        )  # fmt: skip
    return out_TD
