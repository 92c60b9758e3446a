"""More requests than an engine can take: what happens to those that are accepted, and what the others are told.

The engine may be made up (`stream_peer`): its steps end on the beat, so that it has a capacity that nothing on this machine changes. All else
is real. Or it is a `raysgl serve` of a real model, whose capacity is measured first. Requests come at random moments whether or not
earlier ones have been answered.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from functools import partial

import msgspec
import zmq

from raysgl.bench import load, server
from raysgl.bench.client import HTTPFailure, Target, events
from raysgl.bench.report import Report, percentile
from raysgl.bench.stream import made_up
from raysgl.bench.stream_peer import HOST, MODEL, VOCAB, Spec
from raysgl.config import EngineConfig

PLACES, TOKENS, RATE = 32, 50, 50.0
"""Sequences at a time, tokens of each, and steps per second: a request takes a second, so 32 of them are finished in one."""
PROMPT = 32
SETTLE_S = 3.0
"""At the beginning of a phase, for the queue to fill; not measured. With a real model as long as the queue may be, if that is longer."""
MORE = 1.25
"""To measure a real model's capacity, so many times the requests that run at a time are kept in flight: one is always there to follow."""
PAUSE_S = 0.1
"""Until a client of that measurement that was refused asks again."""


@dataclass(frozen=True)
class Asked:
    """Where requests go and what they are: prompts of `PROMPT` tokens drawn from `ids`, `tokens` tokens of answer. settle_s: at the
    beginning of a phase, not measured."""

    target: Target
    model: str
    ids: range | list[int]
    tokens: int
    settle_s: float = SETTLE_S


@dataclass
class Seen:
    """What the requests of a phase came to, in the measured time: from, to. Times in seconds."""

    measured: tuple[float, float]
    first: list[float] = field(default_factory=list)
    ended: list[float] = field(default_factory=list)
    retry_after: list[float] = field(default_factory=list)
    refused: list[float] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)


def run(factor: float, limit_s: float, seconds: float, stage: Callable[[str], None]) -> Report:
    """With a made-up engine. Raises `ServerFailed` if a process of ours does not start."""
    public, secret = zmq.curve_keypair()
    spec = Spec(PLACES, RATE, TOKENS, server.free_port(), (public.decode(), secret.decode()), max_queue_seconds=limit_s)
    capacity = PLACES * RATE / TOKENS
    report = Report(f"{PLACES} places, {capacity:g} requests/s, a queue of {limit_s:g} s; made-up engine")
    with made_up(spec):
        asked = Asked(Target("http", HOST, spec.port, ""), MODEL, range(VOCAB), TOKENS)
        _loads(report, asked, capacity, factor, limit_s, seconds, TOKENS / RATE, stage)
    return report


def run_model(
    config: EngineConfig, places: int, tokens: int, factor: float, limit_s: float, seconds: float, stage: Callable[[str], None]
) -> Report:
    """With a real model on a server of its own. places: sequences that run at a time. Raises `ServerFailed`, or `HTTPFailure` if not
    one request is finished while its capacity is measured."""
    engine = config.model_dump(mode="json", exclude_unset=True)
    engine |= {"max_running_requests": places, "max_queue_seconds": limit_s, "max_queued_requests": 10**6}
    stage("starting")
    with server.running(engine) as running:
        settle_s = max(SETTLE_S, limit_s)
        model = asyncio.run(load.first_model(running.target))
        ids = asyncio.run(load.tokenize(running.target, model, load.TEXT))
        asked = Asked(running.target, model, ids, tokens, settle_s)
        stage(f"capacity: {round(MORE * places)} requests in flight for {seconds:g} s")
        seen = _phase(asked, seconds, partial(_saturate, asked, round(MORE * places)))
        if not seen.ended:
            raise HTTPFailure(0, seen.errors[0] if seen.errors else f"no request was finished within {seconds:g} s")
        capacity = len(seen.ended) / (seconds - settle_s)
        report = Report(f"{model}, {places} places, answers of {tokens} tokens, a queue of {limit_s:g} s")
        report.add("capacity", f"capacity: {round(MORE * places)} in flight, finished a second", capacity)
        _loads(report, asked, capacity, factor, limit_s, seconds, 2 * max(seen.ended), stage)
    return report


def _loads(
    report: Report,
    asked: Asked,
    capacity: float,
    factor: float,
    limit_s: float,
    seconds: float,
    request_s: float,
    stage: Callable[[str], None],
) -> None:
    """Once the capacity, then `factor` times. request_s: of one request, to be waited for in between."""
    for times in (1.0, factor):
        stage(f"{times:g} times the capacity for {seconds:g} s")
        seen = _phase(asked, seconds, partial(_offer, asked, times * capacity))
        _report(report, times, seen, seconds - asked.settle_s, limit_s)
        time.sleep(limit_s + request_s)


def _report(report: Report, load: float, seen: Seen, measured_s: float, limit_s: float) -> None:
    times = f"x{load:g}"
    report.add(f"{times}_finished", f"{times}: finished a second", len(seen.ended) / measured_s)
    for label, share in (("p50", 0.5), ("p99", 0.99), ("max", 1.0)):
        note = f"s; goal: under {2 * limit_s:g}" if label == "max" else "s"
        report.add(f"{times}_ttft_{label}", f"{times}: time to first token, {label}", percentile(seen.first, share), note)
    report.add(
        f"{times}_refused", f"{times}: refused (429)", len(seen.retry_after), f"of {len(seen.first) + len(seen.retry_after)}"
    )
    if seen.retry_after:
        report.add(f"{times}_retry_after", f"{times}: Retry-After, p50", percentile(seen.retry_after, 0.5), "s")
        report.add(f"{times}_retry_after_max", f"{times}: Retry-After, max", max(seen.retry_after), "s")
        report.add(f"{times}_refused_after_p99", f"{times}: refused after, p99", percentile(seen.refused, 0.99), "s")
    report.add(f"{times}_errors", f"{times}: errors", len(seen.errors), seen.errors[0][:80] if seen.errors else "")


def _phase(asked: Asked, seconds: float, send: Callable[[Seen, float], Coroutine[None, None, None]]) -> Seen:
    """`send(seen, until)`, and what was seen."""
    import uvloop

    began = time.perf_counter()
    seen = Seen((began + asked.settle_s, began + seconds))
    uvloop.run(send(seen, began + seconds))
    return seen


async def _saturate(asked: Asked, clients: int, seen: Seen, until: float) -> None:
    """So many clients, each of which asks again as soon as it is answered."""
    source = random.Random(1)

    async def ask() -> None:
        while time.perf_counter() < until:
            if not await _request(asked, _prompt(asked, source), seen):
                await asyncio.sleep(PAUSE_S)

    await asyncio.gather(*(ask() for _ in range(clients)))


async def _offer(asked: Asked, rate: float, seen: Seen, until: float) -> None:
    """So many requests a second, at random moments."""
    source = random.Random(0)
    due = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        while due < until:
            await asyncio.sleep(due - time.perf_counter())
            group.create_task(_request(asked, _prompt(asked, source), seen))
            due += source.expovariate(rate)


def _prompt(asked: Asked, source: random.Random) -> list[int]:
    return source.choices(asked.ids, k=PROMPT)


async def _request(asked: Asked, prompt: list[int], seen: Seen) -> bool:
    """What it comes to counts if it happens in the measured time. Whether it was answered to its end."""
    body = {
        "model": asked.model,
        "prompt": prompt,
        "max_tokens": asked.tokens,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
    }
    sent_at, first = time.perf_counter(), 0.0
    try:
        async for data in events(asked.target, "/v1/completions", body):
            if "error" in msgspec.json.decode(data):
                raise HTTPFailure(0, data.decode()[:200])
            if not first:
                first = time.perf_counter()
                if _within(first, seen.measured):
                    seen.first.append(first - sent_at)
    except HTTPFailure as failure:
        if failure.status != 429:
            seen.errors.append(str(failure))
        elif _within(sent_at, seen.measured):
            seen.retry_after.append(failure.retry_after)
            seen.refused.append(time.perf_counter() - sent_at)
        return False
    ended = time.perf_counter()
    if _within(ended, seen.measured):
        seen.ended.append(ended - sent_at)
    return True


def _within(moment: float, measured: tuple[float, float]) -> bool:
    return measured[0] <= moment <= measured[1]
