"""The fused sum over ranks: processes that share memory, each with its own interpreter of the kernels."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
import torch.multiprocessing as mp

RANKS, DIM = 2, 40
ROWS = (1, 5, 3, 1)
"""Fewer than programs and more."""
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


def worker(rank: int, memories: dict[str, list[torch.Tensor]], out) -> None:
    torch.set_num_threads(1)
    from raysgl.kernels.triton.all_reduce import sum_ranks

    said = {}
    for name, shared in memories.items():
        dtype = DTYPES[name]
        peers = SharedPeers(rank, RANKS, shared[rank], torch.tensor([memory.data_ptr() for memory in shared]))
        weight = part(9, 9, 1, dtype)[0]
        for call, rows in enumerate(ROWS):
            stream = part(7, call, rows, dtype)
            normed = sum_ranks(part(rank, call, rows, dtype), peers, stream, weight, 1e-5)
            total = sum_ranks(part(rank, call, rows, dtype), peers)
            said[name, call] = [x.float().numpy() for x in (normed, stream, total)]
    out.put((rank, said))


@pytest.mark.slow
def test_every_rank_gets_the_sum_and_its_norm():
    from raysgl.kernels.norm import add_rms_norm
    from raysgl.kernels.triton.all_reduce import memory

    context = mp.get_context("spawn")
    out = context.Queue()
    memories = {
        name: [torch.zeros(memory(RANKS, DIM), dtype=torch.uint8).share_memory_() for _ in range(RANKS)] for name in DTYPES
    }
    workers = [context.Process(target=worker, args=(rank, memories, out), daemon=True) for rank in range(RANKS)]
    for process in workers:
        process.start()
    said = dict(out.get(timeout=120) for _ in workers)
    for process in workers:
        process.join(20)
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
