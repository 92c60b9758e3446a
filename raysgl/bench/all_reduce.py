"""The sum over tensor-parallel ranks with residual addition and RMSNorm: ours against NCCL's with our kernel: `python -m raysgl.bench.all_reduce`.

One process a GPU, each seeing only its own, as under Ray. Times are of CUDA graphs of 64 calls, as a decode step of 32 layers has them;
"link" is the time that a rank's bytes need at the rate of a large copy from the next GPU.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing as mp

from raysgl.distributed import PeerMemory, TPGroup, share, start
from raysgl.kernels.norm import add_rms_norm
from raysgl.kernels.sum_ranks import most_rows
from raysgl.kernels.triton import all_reduce

CALLS = 64
ROWS = (1, 4, 16, 32, 64, 128, 256, 384, 512)
COPY_BYTES = 256 << 20


def main(arguments: list[str] | None = None) -> int:
    """0: all sums are right. 1: one was wrong. 2: too few GPUs."""
    parser = argparse.ArgumentParser(
        prog="python -m raysgl.bench.all_reduce", description=(__doc__ or "").partition("\n")[0], allow_abbrev=False
    )
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--dims", type=int, nargs="+", default=[4096, 8192])
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    options = parser.parse_args(arguments)
    if torch.cuda.device_count() < options.ranks:
        print(f"{options.ranks} ranks need as many GPUs; here are {torch.cuda.device_count()}", file=sys.stderr)
        return 2
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    context = mp.get_context("spawn")
    answers = context.Queue()
    workers = [
        context.Process(target=_rank, args=(rank, options.ranks, port, options.dims, answers)) for rank in range(options.ranks)
    ]
    for worker in workers:
        worker.start()
    figures = answers.get(timeout=300)
    for worker in workers:
        worker.join(60)
    print(
        f"{figures['device']} x {options.ranks}, torch {torch.__version__}; a large copy from a peer: {figures['link_gb']:.0f} GB/s"
    )
    print(f"{'rows x dim':>13} {'ours':>8} {'NCCL + norm':>12} {'NCCL':>8} {'link':>8}  us a call; error")
    for row in figures["rows"]:
        times = f"{row['ours']:8.1f} {row['nccl_norm']:12.1f} {row['nccl']:8.1f} {row['link']:8.1f}"
        print(f"{row['rows']:5d} x {row['dim']:5d} {times}  {row['error']:.1e}")
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1))
    return 0 if figures["rows"] and all(row["error"] < 1e-2 for row in figures["rows"]) else 1


def _rank(rank: int, ranks: int, port: int, dims: list[int], answers: Any) -> None:
    os.environ["CUDA_VISIBLE_DEVICES"] = str(rank)
    device = torch.device("cuda:0")
    torch.cuda.set_device(device)
    tp = start(rank, ranks, device, f"tcp://127.0.0.1:{port}", timeout_s=120)
    figures: dict[str, Any] = {"device": torch.cuda.get_device_name(), "rows": []}
    peers = share(tp, max(COPY_BYTES, *(all_reduce.memory(ranks, dim) for dim in dims)), device)
    if peers is None:
        if rank == 0:
            answers.put(figures | {"link_gb": 0.0})
        return
    figures["link_gb"] = COPY_BYTES / _link_us(peers) / 1e3
    tp.barrier()
    for dim in dims:
        peers.own.zero_()
        tp.barrier()
        figures["rows"] += [
            _measure(tp, peers, rows, dim, figures["link_gb"]) for rows in ROWS if rows <= most_rows(ranks, dim)
        ]
    if rank == 0:
        answers.put(figures)
    tp.barrier()
    tp.close()


def _measure(tp: TPGroup, peers: PeerMemory, rows: int, dim: int, link_gb: float) -> dict[str, Any]:
    """Check and time all ways for one shape."""
    device = peers.own.device
    part, stream = (torch.randn(rows, dim, device=device).bfloat16() for _ in range(2))
    tp.broadcast(stream)
    weight = torch.ones(dim, device=device, dtype=torch.bfloat16)
    total = tp.all_reduce(part.float())
    want = torch.nn.functional.rms_norm(total + stream.float(), (dim,), eps=1e-5)

    def ours() -> torch.Tensor:
        return all_reduce.sum_ranks(part, peers, stream, weight, 1e-5)

    def nccl_and_norm() -> torch.Tensor:
        return add_rms_norm(tp.all_reduce(part), stream, weight, 1e-5)[0]

    got = ours().float()
    return {
        "rows": rows,
        "dim": dim,
        "error": float((got - want).norm() / want.norm()),
        "ours": _time(ours, tp),
        "nccl_norm": _time(nccl_and_norm, tp),
        "nccl": _time(partial(tp.all_reduce, part), tp),
        "link": (peers.size - 1) * part.nbytes / link_gb / 1e3,
    }


def _time(call: Callable[[], Any], tp: TPGroup) -> float:
    """Microseconds a call, median of graph replays."""
    for _ in range(3):
        call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        for _ in range(CALLS):
            call()
    took = []
    for _ in range(12):
        tp.barrier()
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        took.append(begin.elapsed_time(end) * 1e3 / CALLS)
    return statistics.median(took[2:])


def _link_us(peers: PeerMemory) -> float:
    """Microseconds of a copy of COPY_BYTES from the next rank's memory."""
    storage = peers.opened[(peers.rank + 1) % peers.size]
    source = torch.empty(0, dtype=torch.uint8, device=peers.own.device).set_(storage, 0, (COPY_BYTES,), (1,))
    target = torch.empty_like(source)
    took = []
    for _ in range(6):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        target.copy_(source)
        end.record()
        end.synchronize()
        took.append(begin.elapsed_time(end) * 1e3)
    return min(took)


if __name__ == "__main__":
    sys.exit(main())
