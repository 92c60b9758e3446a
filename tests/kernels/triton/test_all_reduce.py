"""What ranks say to each other through memory that they share: processes, each with its own interpreter of the kernels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.multiprocessing as mp

RANKS, DIM = 2, 40
ROWS = (1, 5, 3, 1, 8, 6, 5)
"""Fewer than programs and more; few rows, and so many that flags say when they have arrived."""
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass
class SharedPeers:
    rank: int
    size: int
    own: torch.Tensor
    addresses: torch.Tensor


def part(rank: int, call: int, rows: int, dtype: torch.dtype) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1000 * call + rank)
    return torch.randn(rows, DIM, generator=generator).to(dtype)


def add_up(rank: int, memories: dict[str, list[torch.Tensor]]) -> dict:
    from raysgl.kernels.triton.all_reduce import sum_ranks

    said = {}
    for name, shared in memories.items():
        dtype, peers = DTYPES[name], peers_of(rank, shared)
        weight = part(9, 9, 1, dtype)[0]
        for call, rows in enumerate(ROWS):
            stream = part(7, call, rows, dtype)
            normed = sum_ranks(part(rank, call, rows, dtype), peers, stream, weight, 1e-5, torch.ones(7, 100, dtype=dtype))
            total = sum_ranks(part(rank, call, rows, dtype), peers)
            said[name, call] = [x.float().numpy() for x in (normed, stream, total)]
    return said


def send(rank: int, shared: list[torch.Tensor]) -> dict:
    from raysgl.kernels import sent_sums

    sent_sums.PIECE = 3 * DIM
    sums = sent_sums.SentSums(peers_of(rank, shared), shared[1 - rank].untyped_storage(), 9, DIM, torch.bfloat16)
    said = {}
    for call, rows in enumerate((9, 4, 7, 1)):
        mine, stream = part(rank, call, rows, torch.bfloat16), part(7, call, rows, torch.bfloat16)
        sent = sums.begin(rows, DIM, mine.dtype, lambda begin, end, out, mine=mine: out.copy_(mine[begin:end]))
        normed = sent.add_rms_norm(stream, part(9, 9, 1, torch.bfloat16)[0], 1e-5)
        said[call] = [x.float().numpy() for x in (normed, stream)]
    return said


VOCABS = ((5000, 3000), (30, 0))
"""Columns that each rank has."""


def logits(call: int, rows: int) -> torch.Tensor:
    """Of all ranks. In the last two rows ranks have equal ones, and none that is finite."""
    whole = torch.randn(rows, sum(VOCABS[call % 2]), generator=torch.Generator().manual_seed(call)).bfloat16()
    whole[-2, :] = 1.0
    whole[-1, :] = float("-inf")
    return whole


def find_best(rank: int, shared: list[torch.Tensor]) -> dict:
    from raysgl.kernels.triton.argmax import argmax_of_ranks

    peers, said = peers_of(rank, shared), {}
    for call, rows in enumerate((3, 2, 5, 4)):
        vocabs = VOCABS[call % 2]
        first = sum(vocabs[:rank])
        said[call] = argmax_of_ranks(logits(call, rows)[:, first : first + vocabs[rank]], first, peers).numpy()
    return said


def peers_of(rank: int, shared: list[torch.Tensor]) -> SharedPeers:
    return SharedPeers(rank, RANKS, shared[rank], torch.tensor([memory.data_ptr() for memory in shared]))


def worker(rank: int, call: Callable, memories: Any, out) -> None:
    torch.set_num_threads(1)
    out.put((rank, call(rank, memories)))


def on_all_ranks(call: Callable, memories: Any) -> dict[int, dict]:
    context = mp.get_context("spawn")
    out = context.Queue()
    workers = [context.Process(target=worker, args=(rank, call, memories, out), daemon=True) for rank in range(RANKS)]
    for process in workers:
        process.start()
    said = dict(out.get(timeout=120) for _ in workers)
    for process in workers:
        process.join(20)
    return said


def shared_memory(num_bytes: int) -> list[torch.Tensor]:
    return [torch.zeros(num_bytes, dtype=torch.uint8).share_memory_() for _ in range(RANKS)]


@pytest.mark.slow
def test_every_rank_gets_the_sum_and_its_norm():
    from raysgl.kernels.norm import add_rms_norm
    from raysgl.kernels.triton.all_reduce import memory

    said = on_all_ranks(add_up, {name: shared_memory(memory(RANKS, DIM)) for name in DTYPES})
    for name, call in said[0]:
        dtype, rows = DTYPES[name], ROWS[call]
        total = sum(part(rank, call, rows, dtype).float() for rank in range(RANKS))
        weight = part(9, 9, 1, dtype)[0].float()
        normed, stream = add_rms_norm(total, part(7, call, rows, dtype).float(), weight, 1e-5)
        tolerance = {torch.bfloat16: 2e-2, torch.float16: 3e-3}[dtype]
        for rank in range(RANKS):
            for got, want, first in zip(said[rank][name, call], (normed, stream, total), said[0][name, call], strict=True):
                torch.testing.assert_close(torch.from_numpy(got), want, atol=tolerance, rtol=tolerance)
                assert (got == first).all(), "ranks differ"


@pytest.mark.slow
def test_a_sum_goes_piece_by_piece():
    from raysgl.kernels.norm import add_rms_norm
    from raysgl.kernels.sent_sums import memory

    said = on_all_ranks(send, shared_memory(memory(9, DIM)))
    for call, got in said[0].items():
        rows = len(got[0])
        total = sum(part(rank, call, rows, torch.bfloat16).float() for rank in range(RANKS))
        want = add_rms_norm(total, part(7, call, rows, torch.bfloat16).float(), part(9, 9, 1, torch.bfloat16)[0].float(), 1e-5)
        for rank in range(RANKS):
            for one, other, first in zip(said[rank][call], want, got, strict=True):
                torch.testing.assert_close(torch.from_numpy(one), other, atol=2e-2, rtol=2e-2)
                assert (one == first).all(), "ranks differ"


def test_pieces_hold_every_row_once():
    from raysgl.kernels.sent_sums import pieces

    for rows in (1, 2047, 2048, 3071, 3073, 8192, 9000):
        cut = pieces(rows, 4096)
        assert cut[0] == 0 and cut[-1] == rows and cut == sorted(set(cut))
        assert cut[:-1] == [2048 * i for i in range(len(cut) - 1)] and rows - cut[-2] <= 3072


@pytest.mark.slow
def test_every_rank_finds_the_first_of_the_largest_of_all():
    from raysgl.kernels.triton.argmax import memory

    said = on_all_ranks(find_best, shared_memory(memory(RANKS)))
    for call, got in said[0].items():
        whole = logits(call, len(got)).float()
        assert got.tolist() == [int((row == row.max()).nonzero()[0]) for row in whole]
        assert (said[1][call] == got).all()
