"""How fast and how big the global index is: decisions against a full index while KV events stream in. What `raysgl bench index` runs."""

from __future__ import annotations

import gc
import time
from collections import deque
from collections.abc import Callable

import numpy as np
import psutil

from raysgl.bench.report import Report, percentile
from raysgl.messages import KVEvent, KVEvents, Load, PagesRemoved, PagesStored
from raysgl.routing import Decision, ReplicaInfo, Router, RouteRequest

CHAIN = 64
"""Pages of a prompt."""
BATCH = 10
"""Requests routed together: what arrives in a millisecond at 10,000/s."""
NEW = 5
"""Pages of a prompt that are cached nowhere. They are stored when it has its first token and removed some time later: KV events of 100,000
pages/s at 10,000 decisions/s."""
ROUND = 100
"""Batches made at a time."""
OPEN, KEPT = 2000, 10_000
"""Requests in flight, and finished ones whose new pages are still cached."""


class _Filler:
    """Draws chains and keeps the replicas' sequence numbers."""

    def __init__(self, router: Router, replicas: int):
        self.router = router
        self.random = np.random.default_rng(0)
        self.sequences = [0] * replicas

    def tell(self, row: int, events: list[KVEvent], load: Load | None, now: float) -> None:
        self.router.events(KVEvents(f"r{row}", 1, self.sequences[row], events, load), now)
        self.sequences[row] += 1


def measure(report: Report, pages: int, copies: int, replicas: int, seconds: float, stage: Callable[[str], None]) -> None:
    """Fill, then decide for so many seconds on one core; figures go to the report."""
    process = psutil.Process()
    before = process.memory_info().rss
    router = Router(0)
    filler = _Filler(router, replicas)
    load = Load(
        prefill_rate=40_000.0, decode_rate=6000.0, step_seconds=0.02, max_running=256, total_pages=30_000, free_pages=9000,
        cached_pages=15_000,
    )  # fmt: skip
    for row in range(replicas):
        router.join(ReplicaInfo(f"r{row}", 1, "m", ""))
        router.load(f"r{row}", 1, load, 0.0)
    kept = _fill(filler, pages // CHAIN, copies, replicas, stage)
    gc.collect()
    report.add("memory_gib", "memory of the index", (process.memory_info().rss - before) / 2**30, "GiB")
    stage("deciding")
    _decide(report, filler, kept, load, seconds)


def _fill(filler: _Filler, chains: int, copies: int, replicas: int, stage: Callable[[str], None]) -> np.ndarray:
    """Cache so many chains at `copies` random replicas each. Returns some of them, [chains, CHAIN] int64."""
    kept: list[np.ndarray] = []
    done = 0
    while done < chains:
        drawn = filler.random.integers(1, 2**63, (min(1000, chains - done), CHAIN))
        homes = filler.random.integers(0, replicas, (len(drawn), copies)).tolist()
        for chain, rows in zip(drawn.tolist(), homes):
            for row in rows:
                filler.tell(row, [PagesStored(0, chain)], None, 0.0)
        if len(kept) < 100:
            kept.append(drawn[:200])
        done += len(drawn)
        stage(f"filling: {done * CHAIN:,} pages")
    return np.concatenate(kept)


def _decide(report: Report, filler: _Filler, kept: np.ndarray, load: Load, seconds: float) -> None:
    random = filler.random
    flying: deque[Decision] = deque()
    cached: deque[tuple[int, list[int]]] = deque()
    begun, wall, cpu = time.monotonic(), 0.0, 0.0
    latencies: list[float] = []
    own: list[float] = []
    decisions = pages = 0
    round_number = 0
    while time.monotonic() - begun < seconds:
        # Prompts are made off the clocks.
        drawn = kept[random.integers(0, len(kept), ROUND * BATCH)]
        drawn[:, CHAIN - NEW :] = random.integers(1, 2**63, (len(drawn), NEW))
        prompts = [RouteRequest(hashes, CHAIN * 16 + 5) for hashes in drawn.tolist()]
        batches = [prompts[start : start + BATCH] for start in range(0, len(prompts), BATCH)]
        round_number += 1
        if round_number % 2:
            start_cpu, start = time.thread_time(), time.perf_counter()
            for batch in batches:
                pages += _batch(filler, batch, flying, cached, load)
            wall += time.perf_counter() - start
            cpu += time.thread_time() - start_cpu
            decisions += len(prompts)
            continue
        # The clock of CPU time is dear to read, so single batches are timed in rounds of their own.
        for batch in batches:
            start_cpu, start = time.thread_time(), time.perf_counter()
            _batch(filler, batch, flying, cached, load)
            latencies.append(time.perf_counter() - start)
            own.append(time.thread_time() - start_cpu)
    what = f"{CHAIN}-page prompts, {BATCH} at a time, with first tokens, ends and loads"
    report.add("decisions_per_s", "decisions per second of one core", decisions / cpu, what)
    report.add("pages_per_s", "KV events beside them, in the same time", pages / cpu, "pages per second")
    report.add(
        "decisions_per_wall_s", "decisions per second of the clock", decisions / wall, "less where others use the machine"
    )
    for key, name, share in (("p50", "p50", 0.5), ("p99", "p99", 0.99), ("max", "longest", 1.0)):
        report.add(f"batch_{key}_ms", f"a batch with its events, {name}", percentile(own, share) * 1e3, "ms of one core")
        report.add(
            f"batch_{key}_wall_ms", f"a batch with its events, {name}", percentile(latencies, share) * 1e3, "ms of the clock"
        )


def _batch(
    filler: _Filler, requests: list[RouteRequest], flying: deque[Decision], cached: deque[tuple[int, list[int]]], load: Load
) -> int:
    """Route these, and let the oldest in flight go through their lives. Returns the pages that KV events told of."""
    router = filler.router
    now = time.monotonic()
    pages = 0
    for decision in router.choose(requests, now):
        assert isinstance(decision, Decision)
        flying.append(decision)
    while len(flying) > OPEN:
        over = flying.popleft()
        router.first_token(over.ticket, now)
        row = int(over.replica[1:])
        filler.tell(row, [PagesStored(0, over.new_hashes)], load, now)
        cached.append((row, over.new_hashes))
        pages += len(over.new_hashes)
        router.finish(over.ticket, now)
    while len(cached) > KEPT:
        row, old = cached.popleft()
        filler.tell(row, [PagesRemoved(old)], None, now)
        pages += len(old)
    return pages
