"""How long `raysgl serve` takes from the command to the first 200, to the first token, and back down."""

from __future__ import annotations

import asyncio
import statistics
import time
from typing import Any

from raysgl.bench import load, server
from raysgl.bench.dialects import Asking
from raysgl.bench.progress import Stage
from raysgl.bench.report import Report


def run(engine: dict[str, Any], repeats: int, stage: Stage) -> Report:
    """Start, ask one token, stop; `repeats` times after a first round that warms the page cache. engine: settings, as in a config."""
    rounds: list[tuple[float, float, float]] = []
    phases: list[dict[str, float]] = []
    for turn in range(repeats + 1):
        stage(f"round {turn} of {repeats}" if turn else "warming up")
        with server.running(engine | {"served_model_name": "bench"}) as running:
            asked = time.perf_counter()
            answer = asyncio.run(load.complete(running.target, Asking("bench"), "Hello", 1))
            if answer.error:
                raise RuntimeError(answer.error)
            first = running.ready_s + time.perf_counter() - asked
            stopped = server.stop(running.process)
        rounds.append((running.ready_s, first, stopped))
        phases.append(running.phases)
    report = Report("raysgl serve, warm")
    ready, first_token, stop = map(list, zip(*rounds[1:], strict=True))
    _add(report, "ready_s", "command to first 200", ready)
    for phase in phases[-1]:
        _add(report, f"phase {phase}", f"  of it {phase}", [found.get(phase, 0.0) for found in phases[1:]])
    _add(report, "first_token_s", "command to first answer", first_token)
    _add(report, "stop_s", "SIGTERM to exit", stop)
    return report


def _add(report: Report, key: str, what: str, values: list[float]) -> None:
    report.add(key, what, statistics.median(values), "s, median of " + ", ".join(f"{v:.1f}" for v in values))
