"""Many paced streams through an ingress: errors, its event loop's lag, and what is added to a token's way outside the engine.

A token of the made-up engine (`stream_peer`) is the time at which it was sampled, so that the client, which reads the same
clock, sees its age: scheduler, loop, ZeroMQ, detokeniser, HTTP and the client's own reading, all of it together.
"""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
from collections.abc import Iterator

import msgspec
import zmq

from raysgl.bench.client import HTTPFailure, Target, events
from raysgl.bench.progress import Stage
from raysgl.bench.report import Report, percentile
from raysgl.bench.server import ServerFailed, free_port
from raysgl.bench.stream_peer import HOST, MODEL, Spec, age_s
from raysgl.routing import ReplicaInfo

WARM_UP_TOKENS = 25
"""Of each stream: while all streams arrive at once the first tokens are late, which time to first token is about, not this."""


def run(streams: int, rate: float, seconds: float, stage: Stage) -> Report:
    """Raises `ServerFailed` if a process of ours does not start."""
    import uvloop

    public, secret = zmq.curve_keypair()
    spec = Spec(streams, rate, max(WARM_UP_TOKENS + 1, round(rate * seconds)), free_port(), (public.decode(), secret.decode()))
    stage("starting")
    with made_up(spec) as ingress:
        stage(f"{streams} streams of {rate:g} tokens/s for {seconds:g} s")
        ages, counts, errors = uvloop.run(_clients(spec))
        ingress.terminate()
        vitals = msgspec.json.decode(_line(ingress))
    report = Report(f"{streams} streams of {rate:g} tokens/s for {seconds:g} s, made-up engine")
    report.add("errors", "errors", len(errors), errors[0][:80] if errors else "")
    report.add("tokens", "tokens received", sum(counts), f"of {streams * spec.tokens}")
    for label, share in (("p50", 0.5), ("p90", 0.9), ("p99", 0.99)):
        note = "ms; goal: under 5" if label == "p50" else "ms"
        report.add(f"added_{label}_ms", f"added outside the engine, {label}", 1000 * percentile(ages, share), note)
    for label, share in (("p50", 0.5), ("p99", 0.99)):
        note = "ms; goal: under 50" if label == "p99" else "ms"
        report.add(f"lag_{label}_ms", f"event-loop lag of the ingress, {label}", 1000 * percentile(vitals["lags"], share), note)
    report.add("ingress_cpu_us", "ingress CPU for a token", 1e6 * vitals["cpu_s"] / max(1, sum(counts)), "µs")
    return report


@contextlib.contextmanager
def made_up(spec: Spec) -> Iterator[subprocess.Popen]:
    """A made-up engine and an ingress, both ready; the ingress's process. Raises `ServerFailed`."""
    with _peer("engine", spec) as engine:
        spec.engine = msgspec.json.decode(_line(engine), type=ReplicaInfo)
        with _peer("ingress", spec) as ingress:
            _line(ingress)
            yield ingress


@contextlib.contextmanager
def _peer(role: str, spec: Spec) -> Iterator[subprocess.Popen]:
    process = subprocess.Popen(
        [sys.executable, "-m", "raysgl.bench.stream_peer", role], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdin is not None
    try:
        process.stdin.write(msgspec.json.encode(spec) + b"\n")
        process.stdin.close()
        yield process
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _line(process: subprocess.Popen) -> bytes:
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise ServerFailed("a process of the benchmark ended too soon; its output is above")
    return line


async def _clients(spec: Spec) -> tuple[list[float], list[int], list[str]]:
    """Ages of all tokens after the warm-up in seconds, tokens of each stream, errors."""
    target = Target("http", HOST, spec.port, "")
    ages: list[float] = []
    errors: list[str] = []

    async def client(number: int) -> int:
        count = 0
        body = {
            "model": MODEL,
            "prompt": [number * 8 + i for i in range(8)],
            "max_tokens": spec.tokens,
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
        }
        try:
            async for data in events(target, "/v1/completions", body):
                event = msgspec.json.decode(data)
                if "error" in event:
                    raise HTTPFailure(0, str(event["error"]))
                for tick in event["choices"][0]["text"].split():
                    count += 1
                    if count > WARM_UP_TOKENS:
                        ages.append(age_s(int(tick)))
        except HTTPFailure as failure:
            errors.append(str(failure))
        if count != spec.tokens and not errors:
            errors.append(f"stream {number} had {count} tokens instead of {spec.tokens}")
        return count

    counts = await asyncio.gather(*(client(number) for number in range(spec.streams)))
    return ages, counts, errors
