"""Attention backends side by side, through the interface that the engine uses: decode, prompts, and steps with both."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from functools import partial

import numpy as np
import torch

from raysgl.bench.kernels_timing import Bench, Call
from raysgl.kernels.attention import BACKENDS, AttentionBackend, AttentionLayer, HostPlanned, KVCache, create_backend
from raysgl.kernels.batch import ForwardBatch

LAYERS = 32
"""Figures in ms are for so many."""
DECODE = ((1, 256), (1, 4000), (4, 1000), (16, 1000), (64, 1200), (256, 384), (256, 1152), (256, 2240))
"""Rows, and the context of each."""
PROMPTS = ((1, 0, 4096), (1, 4096, 4096), (8, 0, 1024), (8, 1024, 1024))
"""Rows, tokens that are cached, tokens that are computed."""
MIXED = ((256, 1152, 2, 0, 1024), (256, 1152, 8, 0, 1024), (32, 1152, 1, 0, 512), (256, 384, 4, 1024, 512))
"""Decode rows and their context; then as for prompts."""
TINY = ((2, 40),), ((2, 16, 8),), ((2, 40, 2, 16, 8),)


def make_rows(bench: Bench, query_lens: list[int], kv_lens: list[int], num_decode: int) -> ForwardBatch:
    """Rows over random pages of the pool."""
    sizes, device = bench.sizes, bench.device
    rows, tokens = len(kv_lens), sum(query_lens)
    pages = torch.randint(1, sizes.pool_pages, (rows, -(-max(kv_lens) // sizes.page_size)), device=device, dtype=torch.int32)
    zeros = torch.zeros(tokens, dtype=torch.int64, device=device)
    query_lens_S, kv_lens_S = (torch.tensor(lens, dtype=torch.int32, device=device) for lens in (query_lens, kv_lens))
    return ForwardBatch(
        zeros, zeros, zeros, pages, query_lens, kv_lens, query_lens_S, kv_lens_S, num_decode, zeros, sizes.page_size
    )  # fmt: skip


def planned(backend: AttentionBackend, batch: ForwardBatch) -> AttentionBackend:
    """Ready to attend, in the way that the engine runs such a step."""
    if isinstance(backend, HostPlanned) and batch.num_decode == len(batch.query_lens):
        graph = backend.for_graph(batch.num_decode)
        graph.prepare(np.array(batch.kv_lens))
        graph.plan(batch)
        return graph
    backend.plan(batch)
    return backend


def candidates(bench: Bench, cache: KVCache) -> dict[str, Callable[[], AttentionBackend]]:
    """name -> makes a backend. Those that cannot run here are left out, with a word."""
    os.environ.setdefault("FLASHINFER_DISABLE_JIT", "1")
    found: dict[str, Callable[[], AttentionBackend]] = {}
    for name in sorted(BACKENDS, key=lambda name: name != "triton"):
        if name == "torch":
            continue  # the reference of the tests; it copies pages
        make = partial(create_backend, name, cache, bench.sizes.heads)
        try:
            make()
        except Exception as error:  # noqa: BLE001 - whatever it lacks, the others go on
            print(f"without {name}: {error}")
            continue
        found[name] = make
    return found


def compare(
    bench: Bench,
    what: str,
    makers: dict[str, Callable[[], AttentionBackend]],
    batches: list[ForwardBatch],
    num_bytes: float,
    flops: float,
) -> None:
    """Microseconds a layer of each backend, checked against the first one's result."""
    q = bench.random(sum(batches[0].query_lens), bench.sizes.heads, bench.sizes.dim)
    layer = AttentionLayer(0, bench.sizes.dim**-0.5)
    want: torch.Tensor | None = None
    times: dict[str, float] = {}
    for name, make in makers.items():
        try:
            calls: list[Call] = [partial(planned(make(), batch).attend, q, layer) for batch in batches]  # type: ignore[attr-defined]
            out = calls[0]()
            want = out if want is None else want
            bench.check(f"{what} {name}", out, want)
            times[name] = bench.time(calls)
        except Exception as error:  # noqa: BLE001 - the other backends are worth their time
            print(f"{what}: {name}: {type(error).__name__}: {str(error)[:160]}", flush=True)
    best = min(times.values())
    print(f"{what}")
    for name, took in times.items():
        rates = f"{num_bytes / took / 1e6:6.2f} TB/s {flops / took / 1e6:6.0f} TFLOP/s"
        print(f"  {name:26s} {took:8.1f} us {took * LAYERS / 1e3:8.2f} ms {rates}{'  *' if took == best else ''}", flush=True)
    bench.figures.append({"backends": what, "us": times, "bytes": num_bytes, "flops": flops})


def bench_backends(bench: Bench, cache: KVCache) -> None:
    sizes = bench.sizes
    makers = candidates(bench, cache)
    token = 2.0 * sizes.kv_heads * sizes.dim * cache.dtype.itemsize
    decode, prompts, mixed = TINY if bench.tiny else (DECODE, PROMPTS, MIXED)
    pair = 4.0 * sizes.heads * sizes.dim
    print(f"\nbackends: us a layer, ms in {LAYERS} layers, rate of keys and values read once, * the fastest")
    for rows, context in decode:
        num_bytes = rows * context * token
        batches = [make_rows(bench, [1] * rows, [context] * rows, rows) for _ in range(min(8, bench.copies(int(num_bytes))))]
        compare(bench, f"decode {rows} x {context}", makers, batches, num_bytes, rows * context * pair)
    for rows, cached, new in prompts:
        batch = make_rows(bench, [new] * rows, [cached + new] * rows, 0)
        work = rows * new * (cached + new / 2) * pair
        compare(bench, f"prompts {rows} x {cached}+{new}", makers, [batch], rows * (cached + new) * token, work)
    for decodes, context, rows, cached, new in mixed:
        batch = make_rows(bench, [1] * decodes + [new] * rows, [context] * decodes + [cached + new] * rows, decodes)
        num_bytes = (decodes * context + rows * (cached + new)) * token
        work = (decodes * context + rows * new * (cached + new / 2)) * pair
        what = f"mixed {decodes} x {context} and {rows} x {cached}+{new}"
        compare(bench, what, makers, [batch], num_bytes, work)


def attention_table(bench: Bench) -> str:
    """A file of `raysgl/kernels/attention_tables`: microseconds of each backend for each shape, of the model that was measured."""
    sizes = bench.sizes
    lines = []
    for figure in bench.figures:
        kind, _, shape = figure.get("backends", "").partition(" ")
        if kind:
            times = {name: round(took, 1) for name, took in figure["us"].items()}
            lines.append(f"{json.dumps([kind, shape])[:-1]}, {json.dumps(times)}]")
    model = {"heads": sizes.heads, "kv_heads": sizes.kv_heads, "head_dim": sizes.dim, "page_size": sizes.page_size}
    return f'{{"model": {json.dumps(model)},\n"times": [\n' + ",\n".join(lines) + "\n]}\n"
