"""`raysgl bench cluster`: the same requests to real engines, once under each routing policy.

Each policy gets a server of its own with cold caches and the same prompts in the same order: groups that share a long
prefix, by Zipf's law, more of them than fit in one replica. A closed loop: `concurrency` requests are in flight.

Replicas that share cores slow each other down, which no cluster's do: what one computes twice, all pay for. `cores` gives each its own part.
"""

from __future__ import annotations

import asyncio
import json
import random
from contextlib import nullcontext
from dataclasses import dataclass

import psutil

from raysgl.bench import load, server
from raysgl.bench.client import HTTPFailure, Target, request
from raysgl.bench.cpu_quota import limited
from raysgl.bench.dialects import Asking
from raysgl.bench.progress import Stage
from raysgl.bench.report import Report, percentile


@dataclass(frozen=True)
class Settings:
    """Lengths in tokens. groups: how many prefixes there are. kv_tokens: of each replica's pool. cores: of CPU for each engine; 0: no limit."""

    model_path: str
    policies: tuple[str, ...]
    replicas: int
    requests: int
    concurrency: int
    groups: int
    prefix_len: int
    own_len: int
    output_len: int
    kv_tokens: int
    seed: int
    cores: float = 0.0


def run(settings: Settings, stage: Stage) -> Report:
    """One row of figures for each policy. Raises `server.ServerFailed`, `HTTPFailure`, RuntimeError for a failed request,
    RuntimeError or OSError if engines cannot be limited."""
    limit = f" of {settings.cores:g} cores each" if settings.cores else ""
    report = Report(
        f"{settings.requests} requests in {settings.groups} groups with {settings.prefix_len} shared tokens on "
        f"{settings.replicas} replicas{limit}, {settings.concurrency} at a time"
    )
    for policy in settings.policies:
        stage(f"{policy}: starting {settings.replicas} replicas")
        engine = {"model_path": settings.model_path, "device": "cpu", "cpu_threads": 1, "max_total_tokens": settings.kv_tokens}
        with server.running(
            engine, num_cpus_per_shard=0.1, num_replicas=settings.replicas, settings={"routing_policy": policy}
        ) as running:
            result, index = asyncio.run(_measure(running, settings, policy, stage))
        if result.errors:
            raise RuntimeError(f"{policy}: {len(result.errors)} requests failed: {result.errors[0]}")
        good = result.good
        prompt, cached = sum(c.prompt_tokens for c in good), sum(c.cached_tokens for c in good)
        shown = policy.replace("_", " ")
        report.add(f"{policy}_request_rate", f"{shown}: throughput", len(good) / result.seconds, "requests/s")
        for label, share in (("p50", 0.5), ("p99", 0.99)):
            ttft = 1000 * percentile([c.ttft for c in good], share)
            report.add(f"{policy}_ttft_{label}_ms", f"{shown}: time to first token, {label}", ttft, "ms")
        report.add(f"{policy}_computed_tokens", f"{shown}: prompt tokens computed", prompt - cached, f"of {prompt}")
        report.add(f"{policy}_index", f"{shown}: index of cached prefixes", index, "GET /debug/index afterwards")
    return report


async def _measure(running: server.Server, settings: Settings, policy: str, stage: Stage) -> tuple[load.Run, str]:
    """The run, and what the server then says of its index."""
    await _all_replicas(running.target, settings.replicas)
    with limited(_engines(running, settings.replicas), settings.cores) if settings.cores else nullcontext():
        return await _load(running.target, settings, policy, stage)


def _engines(running: server.Server, replicas: int) -> list[int]:
    """Process ids. RuntimeError if not as many are found as there are replicas: a limit on some of them would compare nothing."""
    processes = psutil.Process(running.process.pid).children(recursive=True)
    found = [process.pid for process in processes if process.name().startswith("ray::ModelShard")]
    if len(found) != replicas:
        raise RuntimeError(f"{len(found)} engine processes found to limit, of {replicas} replicas")
    return found


async def _load(target: Target, settings: Settings, policy: str, stage: Stage) -> tuple[load.Run, str]:
    model = await load.first_model(target)
    prompts = await _prompts(target, model, settings)
    # Ramp up the engines: a first step loads code, and rates are measured.
    warm = await load.make_prompts(target, model, 2 * settings.replicas, 64, seed=settings.seed + 1)
    asking = Asking(model)
    await load.run(target, asking, warm, 4, len(warm))
    result = await load.run(
        target,
        asking,
        prompts,
        settings.output_len,
        settings.concurrency,
        lambda done: stage(policy, done, settings.requests),
    )
    status, body = await request(target, "GET", "/debug/index")
    return result, json.loads(body)["status"] if status == 200 else f"HTTP {status}"


async def _all_replicas(target: Target, replicas: int) -> None:
    """A server is ready with its first replica; wait for the others. RuntimeError after five minutes."""
    async with asyncio.timeout(300):
        while True:
            status, body = await request(target, "GET", "/v1/loads")
            if status != 200:
                raise HTTPFailure(status, body.decode(errors="replace")[:500])
            if len(json.loads(body)["loads"]) >= replicas:
                return
            await asyncio.sleep(0.2)


async def _prompts(target: Target, model: str, settings: Settings) -> list[list[int]]:
    """By Zipf's law: the r-th group has a share proportional to 1 / r."""
    draw = random.Random(settings.seed)
    prefixes = await load.make_prompts(target, model, settings.groups, settings.prefix_len, seed=settings.seed)
    own = await load.make_prompts(target, model, settings.requests, settings.own_len, seed=settings.seed + 2)
    weights = [1 / rank for rank in range(1, settings.groups + 1)]
    return [prefix + tail for prefix, tail in zip(draw.choices(prefixes, weights, k=settings.requests), own)]
