"""Attention over the paged cache, through the interface that the engine uses: ours, FA3 and FlashInfer."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

from raysgl.bench.kernels_backends import candidates, planned
from raysgl.bench.kernels_timing import Bench
from raysgl.kernels.attention import AttentionBackend, AttentionLayer, KVCache
from raysgl.kernels.attention.torch_backend import TorchBackend
from raysgl.kernels.batch import ForwardBatch
from raysgl.kernels.triton.backend import TritonBackend
from raysgl.kernels.triton.cascade import cascade_decode, plan_cascade
from raysgl.kernels.triton.decode import Tile, fill, paged_decode, plan_decode


def make_batch(bench: Bench, query: int, lens: list[int], shared: tuple[int, int] | None = None) -> ForwardBatch:
    """Rows of `query` new tokens over random pages of the pool. shared: (rows of a group, pages they begin with together)."""
    sizes, device = bench.sizes, bench.device
    rows, width = len(lens), -(-max(lens) // sizes.page_size)
    pages = torch.randint(1, sizes.pool_pages, (rows, width), device=device, dtype=torch.int32)
    if shared:
        pages[:, : shared[1]] = pages[torch.arange(rows, device=device) // shared[0] * shared[0], : shared[1]]
    kv_lens_S = torch.tensor(lens, dtype=torch.int32, device=device)
    zeros = torch.zeros(rows * query, dtype=torch.int64, device=device)
    query_lens_S = torch.full_like(kv_lens_S, query)
    decodes = rows if query == 1 else 0
    return ForwardBatch(
        zeros, zeros, zeros, pages, [query] * rows, lens, query_lens_S, kv_lens_S, decodes, zeros, sizes.page_size
    )  # fmt: skip


def time_attention(
    bench: Bench,
    what: str,
    cache: KVCache,
    makers: dict[str, Callable[[], AttentionBackend]],
    batches: list[ForwardBatch],
    num_bytes: float,
    flops: float,
) -> None:
    sizes = bench.sizes
    q = bench.random(sum(batches[0].query_lens), sizes.heads, sizes.dim)
    reference = TorchBackend(cache, sizes.heads)
    reference.plan(batches[0])
    k = cache.data[0, :, 0, :1].expand(2, len(q), -1, -1).clone()  # all go to slot 0, as they are there
    layer = AttentionLayer(0, sizes.dim**-0.5)
    # The torch backend attends to a whole prompt's keys as they are handed to it, not as they are in the cache.
    checked = num_bytes < 1e9 and batches[0].kv_lens != batches[0].query_lens
    want = reference.forward(q, k[0], k[1], layer) if checked else None
    times: dict[str, float] = {}
    for name, make in makers.items():
        try:
            calls = [partial(planned(make(), batch).attend, q, layer) for batch in batches]  # type: ignore[attr-defined]
            out = calls[0]()
            want = out if want is None else want
            bench.check(f"{what} {name}", out, want)
            times[name] = bench.time(calls)
        except Exception as error:
            if name == "triton":
                raise
            print(f"{what}: {name}: {str(error)[:120]}")
    bench.report(what, times, num_bytes, flops)


def make_pool(bench: Bench) -> KVCache:
    sizes = bench.sizes
    cache = KVCache(1, sizes.pool_pages - 1, sizes.page_size, sizes.kv_heads, sizes.dim, torch.bfloat16, bench.device)
    cache.data.normal_()
    return cache


def bench_attention(bench: Bench, cache: KVCache) -> None:
    sizes = bench.sizes
    makers = candidates(bench, cache)
    token = 4 * sizes.kv_heads * sizes.dim
    print("\npaged decode, us a layer; TB/s of keys and values, ours / best")
    for rows, context in sizes.decode:
        num_bytes = rows * context * token
        batches = [make_batch(bench, 1, [context] * rows) for _ in range(bench.copies(num_bytes))]
        time_attention(bench, f"decode {rows} x {context}", cache, makers, batches, num_bytes, 0.0)
    ragged = [int(x) for x in torch.linspace(16, 2 * sizes.decode[-1][1], sizes.decode[-1][0] // 4 + 1)]
    batches = [make_batch(bench, 1, ragged)]
    time_attention(bench, f"decode {len(ragged)} ragged", cache, makers, batches, sum(ragged) * token, 0.0)
    print("\npaged prefill, us a layer")
    for rows, prefix, new in sizes.prefill:
        flops = 4.0 * rows * sizes.heads * sizes.dim * new * (prefix + new / 2)
        time_attention(
            bench,
            f"prefill {rows} x {prefix}+{new}",
            cache,
            makers,
            [make_batch(bench, new, [prefix + new] * rows)],
            0.0,
            flops,
        )


def bench_cascade(bench: Bench, cache: KVCache) -> None:
    print(
        "\ncascade decode, us a layer: cascade | with two blocks of shared keys on their way | paged decode of the same; TB/s of bytes that must be read once"
    )
    sizes, layer = bench.sizes, AttentionLayer(0, bench.sizes.dim**-0.5)
    for groups, members, shared, own in sizes.cascade:
        pages, rows = shared // sizes.page_size, groups * members
        batch = make_batch(bench, 1, [shared + own] * rows, (members, pages))
        q = bench.random(rows, sizes.heads, sizes.dim)
        plain, cascade = TritonBackend(cache, sizes.heads), TritonBackend(cache, sizes.heads)
        for backend in (plain, cascade):
            backend.plan(batch)
        order = torch.randperm(groups, device=bench.device).int()
        order_S = order.repeat_interleave(members)
        shared_J = torch.full((groups,), pages, dtype=torch.int32, device=bench.device)
        cascade.plan_cascade(order_S, shared_J)
        plan = plan_cascade(order_S, shared_J, batch.kv_lens_S, sizes.page_size, sizes.heads // sizes.kv_heads, sizes.kv_heads)
        what = f"cascade {groups} x {members} x {shared}+{own}"
        bench.check(what, cascade.attend(q, layer), plain.attend(q, layer))
        deeper = partial(
            cascade_decode, q, cache.data[0, 0], cache.data[0, 1], batch.page_table_SP, plan, layer.scale,
            shared_tile=Tile(64, 4, 3),
        )  # fmt: skip
        times = {
            "cascade": bench.time([partial(cascade.attend, q, layer)]),
            "deeper": bench.time([deeper]),
            "paged": bench.time([partial(plain.attend, q, layer)]),
        }
        bench.report(what, times, (groups * shared + rows * own) * 4.0 * sizes.kv_heads * sizes.dim)


def tune_attention(bench: Bench, cache: KVCache) -> None:
    print("\npaged decode: the best tiles (keys, warps, stages), and fewest tokens of a split")
    sizes = bench.sizes
    tiles = [
        Tile(*t)
        for t in (
            (64, 4, 2), (64, 4, 3), (64, 4, 4), (128, 4, 2), (128, 4, 3), (128, 8, 2), (128, 8, 3),
            (32, 4, 3), (32, 4, 4), (32, 4, 6), (32, 2, 4), (64, 2, 3), (64, 8, 3), (64, 8, 4),
        )
    ]  # fmt: skip
    shapes = (
        sizes.decode
        if bench.tiny
        else ((1, 256), (1, 4000), (4, 1000), (16, 1000), (64, 1200), (128, 384), (256, 384), (256, 1152))
    )
    for rows, context in shapes:
        batches = [
            make_batch(bench, 1, [context] * rows)
            for _ in range(min(8, bench.copies(rows * context * 4 * sizes.kv_heads * sizes.dim)))
        ]
        q = bench.random(rows, sizes.heads, sizes.dim)
        found: list[tuple[float, str]] = []
        for tile in tiles:
            for chunk, share in ((64, 1.0), (64, 0.25), (64, 0.5)):
                if rows > 64 and share != 1:
                    continue  # nothing is split there
                extra = max(1, int(share * fill(bench.device, sizes.kv_heads)))
                plan = plan_decode(batches[0].kv_lens_S, sizes.kv_heads, None, extra, chunk)
                ours = partial(paged_decode, q, cache.data[0, 0], cache.data[0, 1], plan=plan, scale=0.09, tile=tile)
                calls = [partial(ours, batch.page_table_SP) for batch in batches]
                try:
                    found.append((bench.time(calls), f"{tile} chunk={chunk} extra={extra}"))
                except Exception as error:  # noqa: BLE001 - a tile that does not fit
                    print(f"{tile}: {str(error)[:100]}")
        for took, label in sorted(found)[:4]:
            print(f"decode {rows} x {context} {took:8.1f} us  {label}", flush=True)
        bench.figures.append({"tune": f"decode {rows} x {context}", "us": sorted(found)})
