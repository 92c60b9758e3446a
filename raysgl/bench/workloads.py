"""The seven workloads of docs/performance.md, against any OpenAI-compatible server, from client processes of their own.

Prompts are random token ids (fixed seeds), sent to /v1/completions with temperature 0, ignore_eos and streaming with usage, so that every
server computes the same number of tokens. One client process carries at most a few hundred streams: the load generator must
not be the bottleneck, so its CPU share is reported.
"""

from __future__ import annotations

import asyncio
import os
import random
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

from raysgl.bench.client import Target
from raysgl.bench.load import Completion, Run, complete

FIRST_ID, LAST_ID = 1000, 40000
"""Ids of prompts: within the vocabulary of any model of interest, clear of special tokens."""


@dataclass(frozen=True)
class Workload:
    """`requests` prompts of `shared + own` tokens in, `output` out, `concurrency` at a time (or at `rate` per second).

    groups: so many different shared prefixes, shuffled. turns: each request is a conversation that resends its history.
    """

    name: str
    what: str
    requests: int
    own: int
    output: int
    concurrency: int
    shared: int = 0
    groups: int = 0
    rate: float = 0.0
    turns: int = 1


WORKLOADS = {
    w.name: w
    for w in (
        Workload("S1", "latency", 8, 128, 256, 1),
        Workload("S2", "decode-heavy", 512, 128, 512, 256),
        Workload("S3", "balanced", 512, 1024, 256, 256),
        Workload("S4", "prefill-heavy", 128, 4096, 16, 64),
        Workload("S5", "shared prefix", 512, 128, 128, 256, shared=2048, groups=32),
        Workload("S6", "online", 300, 1024, 128, 300, rate=20.0),
        Workload("S7", "multi-turn", 64, 256, 128, 64, turns=6),
    )
}


def prompts(workload: Workload, seed: int) -> list[list[int]]:
    """First prompts of all requests. Workloads draw different ones, so that none finds another's in the cache."""
    draw = random.Random(f"{workload.name}-{seed}")

    def ids(count: int) -> list[int]:
        return [draw.randrange(FIRST_ID, LAST_ID) for _ in range(count)]

    prefixes = [ids(workload.shared) for _ in range(workload.groups)] or [[]]
    made = [prefixes[i % len(prefixes)] + ids(workload.own) for i in range(workload.requests)]
    draw.shuffle(made)
    return made


async def _client(target: Target, model: str, workload: Workload, work: list[tuple[float, list[int]]], seats: int, seed: int):
    """Runs its share: (seconds to wait before sending, prompt) each."""
    started = time.perf_counter()
    queue = iter(work)
    draw = random.Random(seed)
    done: list[Completion] = []

    def ids(count: int) -> list[int]:
        return [draw.randrange(FIRST_ID, LAST_ID) for _ in range(count)]

    async def seat() -> None:
        for delay, prompt in queue:
            if (early := started + delay - time.perf_counter()) > 0:
                await asyncio.sleep(early)
            for _ in range(workload.turns):
                result = await complete(target, model, prompt, workload.output, return_token_ids=workload.turns > 1)
                done.append(result)
                # A server that does not say the answer's ids is sent made-up ones of its length.
                answer = result.token_ids or ids(workload.output)
                prompt = prompt + answer + ids(workload.own)

    await asyncio.gather(*(seat() for _ in range(seats)))
    return done


def _process(url: str, model: str, workload: Workload, work, seats: int, seed: int) -> tuple[list[Completion], float]:
    cpu = time.process_time()
    done = asyncio.run(_client(Target.parse(url), model, workload, work, seats, seed))
    return done, time.process_time() - cpu


def run(url: str, model: str, workload: Workload, *, processes: int = 4, seed: int = 1) -> tuple[Run, float]:
    """All requests. Returns what happened and the busiest client process's share of a core.

    perf_counter is one clock for all processes of a machine, so completions of several can be compared.
    """
    processes = max(1, min(processes, workload.concurrency, os.cpu_count() or 1))
    delays = [0.0] * workload.requests
    if workload.rate:
        draw, at = random.Random(seed), 0.0
        for i in range(workload.requests):
            at += draw.expovariate(workload.rate)
            delays[i] = at
    work = list(zip(delays, prompts(workload, seed), strict=True))
    with ProcessPoolExecutor(processes) as pool:
        list(pool.map(_process, *zip(*[(url, model, workload, [], 0, 0)] * processes, strict=True)))  # start them all first
        futures = [
            pool.submit(_process, url, model, workload, work[i::processes], -(-workload.concurrency // processes), seed + i)
            for i in range(processes)
        ]
        results = [future.result() for future in futures]
    completions = [completion for done, _ in results for completion in done]
    seconds = max(c.ended for c in completions) - min(c.started for c in completions)
    return Run(completions, seconds), max(cpu for _, cpu in results) / seconds
