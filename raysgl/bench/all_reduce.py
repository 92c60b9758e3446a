"""The sum over tensor-parallel ranks with residual addition and RMSNorm: ours against NCCL's with our kernel: `python -m raysgl.bench.all_reduce`.

One process a GPU, each seeing only its own, as under Ray. Times are of CUDA graphs of 64 calls, as a decode step of 32 layers has them;
"link" is the time that a rank's bytes need at the rate of a large copy from the next GPU; "flags" is ours for many rows, "words" ours for few.
Then steps with prompts: a product of many rows, whose sum goes to the other rank piece by piece while the rest is computed.
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
from raysgl.kernels import sent_sums
from raysgl.kernels.norm import add_rms_norm
from raysgl.kernels.sum_ranks import most_rows
from raysgl.kernels.triton import all_reduce

CALLS = 64
ROWS = (1, 4, 16, 32, 64, 128, 256, 384, 512, 1024, 2048)
PRODUCTS = ((8192, 4096, 4096), (8192, 14336, 4096), (5000, 14336, 4096))
"""Rows, input features of all ranks, output features."""
PIECES = (2**22, 2**23, 2**24)
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
    print(f"{'rows x dim':>13} {'words':>8} {'flags':>8} {'NCCL + norm':>12} {'NCCL':>8} {'link':>8}  us a call; errors")
    for row in figures["rows"]:
        ours = " ".join(f"{row[kind]:8.1f}" if kind in row else " " * 8 for kind in ("words", "flags"))
        times = f"{ours} {row['nccl_norm']:12.1f} {row['nccl']:8.1f} {row['link']:8.1f}"
        print(f"{row['rows']:5d} x {row['dim']:5d} {times}  {row['error']:.1e}")
    for row in figures["products"]:
        shape = f"{row['rows']} x {row['inputs']} x {row['dim']}"
        sent = ", ".join(f"{us:.0f} in pieces of {piece}" for piece, us in row["sent"].items())
        print(f"{shape}: {row['product']:.0f} us, with sum and norm {row['nccl_norm']:.0f} by NCCL; {sent}; {row['error']:.1e}")
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1))
    return 0 if figures["rows"] and all(row["error"] < 1e-2 for row in figures["rows"] + figures["products"]) else 1


def _rank(rank: int, ranks: int, port: int, dims: list[int], answers: Any) -> None:
    os.environ["CUDA_VISIBLE_DEVICES"] = str(rank)
    device = torch.device("cuda:0")
    torch.cuda.set_device(device)
    tp = start(rank, ranks, device, f"tcp://127.0.0.1:{port}", timeout_s=120)
    figures: dict[str, Any] = {"device": torch.cuda.get_device_name(), "rows": [], "products": []}
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
        figures["rows"] += [_measure(tp, peers, rows, dim, figures["link_gb"]) for rows in ROWS]
    del peers
    if ranks == 2:
        figures["products"] = [_measure_product(tp, *product, device) for product in PRODUCTS]
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

    def ours(few: bool) -> torch.Tensor:
        return all_reduce.sum_ranks(part, peers, stream, weight, 1e-5, few=few)

    def nccl_and_norm() -> torch.Tensor:
        return add_rms_norm(tp.all_reduce(part), stream, weight, 1e-5)[0]

    kinds = {"words": True} if rows <= all_reduce.FEW_ROWS else {}
    if rows <= most_rows(peers.size, dim):
        kinds["flags"] = False
    begun, errors = stream.clone(), []
    ways: list[Callable[[], torch.Tensor]] = [partial(ours, few) for few in kinds.values()]
    for way in (*ways, nccl_and_norm):  # NCCL's last: it overwrites the part
        stream.copy_(begun)
        errors.append(_error(way(), want))
    return {
        "rows": rows,
        "dim": dim,
        "error": max(errors),
        **{name: _time(partial(ours, few), tp) for name, few in kinds.items()},
        "nccl_norm": _time(nccl_and_norm, tp),
        "nccl": _time(partial(tp.all_reduce, part), tp),
        "link": (peers.size - 1) * part.nbytes / link_gb / 1e3,
    }


def _error(got: torch.Tensor, want: torch.Tensor) -> float:
    return float((got.float() - want).norm() / want.norm())


def _measure_product(tp: TPGroup, rows: int, inputs: int, dim: int, device: torch.device) -> dict[str, Any]:
    """This rank's part of a product, then sum and norm: one after the other, and with the sum on its way meanwhile."""
    x = torch.randn(rows, inputs // 2, device=device).bfloat16() / inputs**0.5
    matrix = torch.randn(dim, inputs // 2, device=device).bfloat16()
    begun = torch.randn(rows, dim, device=device).bfloat16()
    tp.broadcast(begun)
    weight = torch.ones(dim, device=device, dtype=torch.bfloat16)
    peers = share(tp, sent_sums.memory(rows, dim), device)
    assert peers is not None
    sums = sent_sums.SentSums(peers, peers.opened[1 - tp.rank], rows, dim, torch.bfloat16)
    stream = begun.clone()

    def nccl_and_norm() -> torch.Tensor:
        return add_rms_norm(tp.all_reduce(x @ matrix.t()), stream, weight, 1e-5)[0]

    def product(begin: int, end: int, out: torch.Tensor) -> None:
        torch.mm(x[begin:end], matrix.t(), out=out)

    def sent() -> torch.Tensor:
        return sums.begin(rows, dim, torch.bfloat16, product).add_rms_norm(stream, weight, 1e-5)

    want = nccl_and_norm().float()
    stream.copy_(begun)
    figures: dict[str, Any] = {"rows": rows, "inputs": inputs, "dim": dim, "error": _error(sent(), want), "sent": {}}
    figures["product"] = _time_eager(lambda: x @ matrix.t(), tp)
    figures["nccl_norm"] = _time_eager(nccl_and_norm, tp)
    usual = sent_sums.PIECE
    for sent_sums.PIECE in PIECES:
        figures["sent"][sent_sums.PIECE] = _time_eager(sent, tp)
    sent_sums.PIECE = usual
    return figures


def _time_eager(call: Callable[[], Any], tp: TPGroup, calls: int = 20) -> float:
    """Microseconds a call, of the best of five rows of calls: long enough for the host to be ahead."""
    took = []
    for _ in range(5):
        tp.barrier()
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        for _ in range(calls):
            call()
        end.record()
        end.synchronize()
        took.append(begin.elapsed_time(end) * 1e3 / calls)
    return min(took)


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
