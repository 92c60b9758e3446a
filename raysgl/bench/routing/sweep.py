"""The whole comparison: workloads x replicas x policies, run in processes, as JSON or a table."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean

from raysgl.bench.routing.calibration import Calibration
from raysgl.bench.routing.cluster import Cluster, Outcome, Targets
from raysgl.bench.routing.oracle import ORACLES
from raysgl.bench.routing.policies import CacheAware, DynamoKV, LeastLoaded, Policy, PowerOfTwo, RoundRobin
from raysgl.bench.routing.raysgl_policy import Raysgl
from raysgl.bench.routing.trace import load_trace
from raysgl.bench.routing.workloads import WORKLOADS, Workload, make_workload

POLICIES: dict[str, tuple[type[Policy], ...]] = {
    "round_robin": (RoundRobin,),
    "least_loaded": (LeastLoaded,),
    "power_of_two": (PowerOfTwo,),
    "cache_aware": (CacheAware,),
    "dynamo_kv": (DynamoKV,),
    "raysgl": (Raysgl,),
    "oracle": ORACLES,
}
"""name -> rules. Of several the best counts, for each workload, number of replicas and seed on its own."""

REPLICAS = (4, 16, 64, 256)


@dataclass(frozen=True)
class Settings:
    """What to run. seeds: workloads drawn, of which the mean counts; small clusters get more of them, since they have fewer requests.

    load: instead of each workload's own. trace: instead of the synthetic workloads. jobs: processes.
    """

    workloads: tuple[str, ...] = tuple(WORKLOADS)
    replicas: tuple[int, ...] = REPLICAS
    policies: tuple[str, ...] = tuple(POLICIES)
    seeds: int = 0
    size: int = 0
    load: float = 0.0
    calibration: Calibration = field(default_factory=Calibration)
    targets: Targets = field(default_factory=Targets)
    trace: Path | None = None
    jobs: int = 0

    def seeds_for(self, replicas: int) -> int:
        return 1 if self.trace else self.seeds or max(1, 48 // replicas)


@dataclass
class Cell:
    """One workload at one number of replicas under one policy: the outcome of each seed."""

    outcomes: list[Outcome] = field(default_factory=list)

    @property
    def goodput(self) -> float:
        return fmean(outcome.goodput for outcome in self.outcomes)


Results = dict[str, dict[int, dict[str, Cell]]]


def sweep(settings: Settings, progress: Callable[[int, int, str], None]) -> Results:
    """Run everything. progress(done, of, what) is called after each part."""
    names = ("trace",) if settings.trace else settings.workloads
    # The longest first, so that no process is left alone with one at the end.
    parts = [
        (name, replicas, seed)
        for replicas in sorted(settings.replicas, reverse=True)
        for name in names
        for seed in range(settings.seeds_for(replicas))
    ]
    work = [(name, replicas, seed, policy) for name, replicas, seed in parts for policy in settings.policies]
    # Costs differ by policy: about so many seconds per request and rule.
    shares = {part: part[1] * (5 if part[3] == "raysgl" else 2 * len(POLICIES[part[3]])) for part in work}
    total, done = sum(shares.values()), 0
    results: Results = {}
    progress(0, total, "")
    for part, outcome in _run_all(settings, work):
        name, replicas, _, policy = part
        results.setdefault(name, {}).setdefault(replicas, {}).setdefault(policy, Cell()).outcomes.append(outcome)
        done += shares[part]
        progress(done, total, f"{name}, {replicas} replicas, {policy}")
    return {name: {n: {p: results[name][n][p] for p in settings.policies} for n in settings.replicas} for name in names}


Part = tuple[str, int, int, str]


def _run_all(settings: Settings, work: list[Part]) -> Iterable[tuple[Part, Outcome]]:
    jobs = settings.jobs or min(
        len(work), len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    if jobs == 1:
        for part in work:
            yield part, run_part(settings, part)
        return
    with ProcessPoolExecutor(jobs) as pool:
        running = {pool.submit(run_part, settings, part): part for part in work}
        try:
            for future in as_completed(running):
                yield running[future], future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


_last: tuple[object, Workload] | None = None


def run_part(settings: Settings, part: Part) -> Outcome:
    """One workload under one policy; of a policy's several rules the best."""
    global _last
    name, replicas, seed, policy = part
    key = (settings, name, replicas, seed)
    if _last is None or _last[0] != key:
        _last = None  # frees its memory before the next is made
        _last = (key, make(settings, name, replicas, seed))
    workload = _last[1]
    outcomes = [
        Cluster(workload, replicas, settings.calibration, rule(replicas, seed), settings.targets).run()
        for rule in POLICIES[policy]
    ]
    return max(outcomes, key=lambda outcome: outcome.goodput)


def make(settings: Settings, name: str, replicas: int, seed: int) -> Workload:
    """The workload of a part."""
    if settings.trace is not None:
        return load_trace(settings.trace, settings.calibration)
    return make_workload(name, replicas, settings.calibration, seed, settings.size * replicas, settings.load)


def as_json(results: Results) -> str:
    """{workload: {replicas: {policy: goodput}}}, requests per second."""
    return json.dumps(
        {
            name: {str(n): {policy: round(cell.goodput, 3) for policy, cell in cells.items()} for n, cells in rows.items()}
            for name, rows in results.items()
        },
        indent=2,
    )


def table(results: Results, settings: Settings) -> object:
    """A rich table: goodput in requests/s, and each policy's share of the oracle's."""
    from rich.table import Table

    shown = Table(
        title=f"good requests per second (first token within {settings.targets.ttft:g} s, each further one within "
        f"{settings.targets.tpot * 1000:g} ms), and % of the oracle's",
        title_justify="left",
    )
    shown.add_column("workload")
    shown.add_column("replicas", justify="right")
    for policy in settings.policies:
        shown.add_column(policy.replace("_", " "), justify="right")
    for name, rows in results.items():
        for replicas, cells in rows.items():
            oracle = cells["oracle"].goodput if "oracle" in cells else 0.0
            figures = []
            for policy, cell in cells.items():
                share = f" {100 * cell.goodput / oracle:.0f}%" if oracle and policy != "oracle" else ""
                figures.append(f"{cell.goodput:,.1f}{share}")
            shown.add_row(name, str(replicas), *figures)
        shown.add_section()
    return shown
