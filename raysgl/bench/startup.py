"""How long `raysgl serve` takes from the command to the first 200, phase by phase, to the first token, and back down."""

from __future__ import annotations

import asyncio
import json
import statistics
import time
from dataclasses import dataclass
from typing import Any

from raysgl.bench import load, server
from raysgl.bench.client import HTTPFailure, Target, request
from raysgl.bench.dialects import Asking
from raysgl.bench.progress import Stage
from raysgl.bench.report import Report

WHAT = {
    "ray": "the command, Ray, placing the replica",
    "process": "the shards' processes",
    "imports": "torch",
    "resolve": "the model's files and config",
    "engine": "tokenizer of constraints, sockets",
    "ingress": "what the ingress needs beyond",
}


@dataclass(frozen=True)
class Round:
    """Seconds of one start. phases: from the command to the first 200, in order."""

    ready: float
    first_token: float
    stop: float
    phases: dict[str, float]


def run(engine: dict[str, Any], repeats: int, stage: Stage) -> Report:
    """Start, ask one token, stop; `repeats` times after a first round that warms the page cache. engine: settings, as in a config."""
    rounds = []
    for turn in range(repeats + 1):
        stage(f"round {turn} of {repeats}" if turn else "warming up")
        rounds.append(_round(engine | {"served_model_name": "bench"}))
    report, counted = Report("raysgl serve, warm"), rounds[1:]
    _add(report, "ready_s", "command to first 200", [done.ready for done in counted])
    for phase in counted[0].phases:
        name = f"  of it {phase.replace('_', ' ')}" + (f": {WHAT[phase]}" if phase in WHAT else "")
        _add(report, f"phase_{phase}_s", name, [done.phases.get(phase, 0.0) for done in counted])
    _add(report, "first_token_s", "command to first answer", [done.first_token for done in counted])
    _add(report, "stop_s", "SIGTERM to exit", [done.stop for done in counted])
    return report


def _add(report: Report, key: str, what: str, values: list[float]) -> None:
    report.add(key, what, statistics.median(values), "s, median of " + ", ".join(f"{v:.1f}" for v in values))


def _round(engine: dict[str, Any]) -> Round:
    began = time.time()
    with server.running(engine) as running:
        asked = time.perf_counter()
        answer = asyncio.run(load.complete(running.target, Asking("bench"), "Hello", 1))
        if answer.error:
            raise RuntimeError(answer.error)
        first = running.ready_s + time.perf_counter() - asked
        phases = phases_of(asyncio.run(_replica(running.target)), began, began + running.ready_s)
        return Round(running.ready_s, first, server.stop(running.process), phases)


async def _replica(target: Target) -> dict[str, Any]:
    """What the server says of its replica."""
    status, body = await request(target, "GET", "/server_info")
    if status != 200:
        raise HTTPFailure(status, body.decode(errors="replace")[:200])
    return json.loads(body)["internal_states"][0]


def phases_of(replica: dict[str, Any], began: float, ready: float) -> dict[str, float]:
    """The replica's own phases between what came before and after them; times are unix times. In sum what the start took."""
    seconds = replica["startup_seconds"]
    ended = replica["started_at"] + sum(seconds.values())
    return {"ray": replica["started_at"] - began, **seconds, "ingress": max(0.0, ready - ended)}
