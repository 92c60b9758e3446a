"""More requests than an engine can take: what happens to those that are accepted, and what the others are told.

The engine is made up (`stream_peer`): its steps end on the beat, so that it has a capacity that nothing on this machine changes. All else
is real. Requests come at random moments whether or not earlier ones have been answered.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import msgspec
import zmq

from raysgl.bench.client import HTTPFailure, Target, events
from raysgl.bench.report import Report, percentile
from raysgl.bench.server import free_port
from raysgl.bench.stream import made_up
from raysgl.bench.stream_peer import HOST, MODEL, Spec

PLACES, TOKENS, RATE = 32, 50, 50.0
"""Sequences at a time, tokens of each, and steps per second: a request takes a second, so 32 of them are finished in one."""
PROMPT = 32
SETTLE_S = 3.0
"""At the beginning of a phase, for the queue to fill; not measured."""


@dataclass
class Seen:
    """What the requests of a phase came to. Times in seconds."""

    first: list[float] = field(default_factory=list)
    ended: list[float] = field(default_factory=list)
    retry_after: list[float] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)


def run(factor: float, limit_s: float, seconds: float, stage: Callable[[str], None]) -> Report:
    """Raises `ServerFailed` if a process of ours does not start."""
    import uvloop

    public, secret = zmq.curve_keypair()
    spec = Spec(PLACES, RATE, TOKENS, free_port(), (public.decode(), secret.decode()), max_queue_seconds=limit_s)
    capacity = PLACES * RATE / TOKENS
    report = Report(f"{PLACES} places, {capacity:g} requests/s, a queue of {limit_s:g} s; made-up engine")
    with made_up(spec):
        for load in (1.0, factor):
            stage(f"{load:g} times the capacity for {seconds:g} s")
            seen = uvloop.run(_offer(spec, load * capacity, seconds))
            _report(report, load, seen, seconds, limit_s)
            time.sleep(limit_s + TOKENS / RATE)
    return report


def _report(report: Report, load: float, seen: Seen, seconds: float, limit_s: float) -> None:
    times = f"x{load:g}"
    report.add(f"{times}_finished", f"{times}: finished a second", len(seen.ended) / (seconds - SETTLE_S))
    for label, share in (("p50", 0.5), ("p99", 0.99), ("max", 1.0)):
        note = f"s; goal: under {2 * limit_s:g}" if label == "max" else "s"
        report.add(f"{times}_ttft_{label}", f"{times}: time to first token, {label}", percentile(seen.first, share), note)
    report.add(
        f"{times}_refused", f"{times}: refused (429)", len(seen.retry_after), f"of {len(seen.first) + len(seen.retry_after)}"
    )
    if seen.retry_after:
        report.add(f"{times}_retry_after", f"{times}: Retry-After, p50", percentile(seen.retry_after, 0.5), "s")
    report.add(f"{times}_errors", f"{times}: errors", len(seen.errors), seen.errors[0][:80] if seen.errors else "")


async def _offer(spec: Spec, rate: float, seconds: float) -> Seen:
    source, seen = random.Random(0), Seen()
    began = due = time.perf_counter()
    until = began + seconds
    async with asyncio.TaskGroup() as group:
        while due < until:
            await asyncio.sleep(due - time.perf_counter())
            prompt = [source.randrange(2**16) for _ in range(PROMPT)]
            group.create_task(_request(spec, prompt, seen, (began + SETTLE_S, until)))
            due += source.expovariate(rate)
    return seen


async def _request(spec: Spec, prompt: list[int], seen: Seen, measured: tuple[float, float]) -> None:
    """What it comes to counts if it happens in the measured time."""
    body = {"model": MODEL, "prompt": prompt, "max_tokens": spec.tokens, "temperature": 0, "ignore_eos": True, "stream": True}
    sent_at, first = time.perf_counter(), 0.0
    try:
        async for data in events(Target("http", HOST, spec.port, ""), "/v1/completions", body):
            if not first:
                first = time.perf_counter()
                if _within(first, measured):
                    seen.first.append(first - sent_at)
                if "error" in msgspec.json.decode(data):
                    raise HTTPFailure(0, data.decode()[:200])
        if _within(time.perf_counter(), measured):
            seen.ended.append(time.perf_counter() - sent_at)
    except HTTPFailure as failure:
        if failure.status != 429:
            seen.errors.append(str(failure))
        elif _within(sent_at, measured):
            seen.retry_after.append(failure.retry_after)


def _within(moment: float, measured: tuple[float, float]) -> bool:
    return measured[0] <= moment <= measured[1]
