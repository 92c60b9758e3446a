"""How long `raysgl serve` takes from the command to the first 200, to the first token, and back down."""

from __future__ import annotations

import asyncio
import statistics
import time

from raysgl.bench import load, server
from raysgl.bench.dialects import Asking
from raysgl.bench.progress import Stage
from raysgl.bench.report import Report


def run(model_path: str, repeats: int, stage: Stage) -> Report:
    """Start, ask one token, stop; `repeats` times after a first round that warms the page cache."""
    rounds: list[tuple[float, float, float]] = []
    for turn in range(repeats + 1):
        stage(f"round {turn} of {repeats}" if turn else "warming up")
        with server.running({"model_path": model_path, "served_model_name": "bench"}) as running:
            asked = time.perf_counter()
            answer = asyncio.run(load.complete(running.target, Asking("bench"), "Hello", 1))
            if answer.error:
                raise RuntimeError(answer.error)
            first = running.ready_s + time.perf_counter() - asked
            stopped = server.stop(running.process)
        rounds.append((running.ready_s, first, stopped))
    report = Report("raysgl serve, warm")
    names = ("ready_s", "command to first 200"), ("first_token_s", "command to first answer"), ("stop_s", "SIGTERM to exit")
    for (key, what), values in zip(names, zip(*rounds[1:], strict=True), strict=True):
        report.add(key, what, statistics.median(values), "s, median of " + ", ".join(f"{v:.1f}" for v in values))
    return report
