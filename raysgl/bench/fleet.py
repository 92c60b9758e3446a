"""Load from client processes of their own, so that the load generator is not the bottleneck: its CPU share is in the result."""

from __future__ import annotations

import asyncio
import concurrent.futures
import math
import multiprocessing
import os
import random
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from raysgl.bench.client import Target
from raysgl.bench.dialects import DIALECTS, Asking, Completion
from raysgl.bench.load import Run, complete
from raysgl.bench.prompts import Conversation, ids

START_S = 120.0
"""Client processes must be there after so long."""


@dataclass(frozen=True)
class Traffic:
    """When conversations begin. rate: a second, on average (inf: as soon as there is a seat). burstiness: 1 is a Poisson process,
    less comes in bursts, inf is even. concurrency: conversations at a time at most (0: any number)."""

    rate: float = math.inf
    burstiness: float = 1.0
    concurrency: int = 0

    def __str__(self) -> str:
        parts = [] if math.isinf(self.rate) else [f"{self.rate:g}/s"]
        return ", ".join(parts + ([f"{self.concurrency} at a time"] if self.concurrency else [])) or "all at once"


def arrivals(count: int, traffic: Traffic, seed: int) -> list[float]:
    """Seconds after the start at which each of `count` conversations may begin, rising. Gaps are gamma distributed."""
    if math.isinf(traffic.rate):
        return [0.0] * count
    source, at, found = random.Random(seed), 0.0, []
    for _ in range(count):
        if math.isinf(traffic.burstiness):
            at += 1 / traffic.rate
        elif traffic.burstiness == 1:
            at += source.expovariate(traffic.rate)
        else:
            at += source.gammavariate(traffic.burstiness, 1 / (traffic.rate * traffic.burstiness))
        found.append(at)
    return found


def run(
    target: Target,
    asking: Asking,
    conversations: list[Conversation],
    traffic: Traffic,
    *,
    processes: int = 4,
    seed: int = 1,
    progress: Callable[[int], None] = lambda done: None,
) -> Run:
    """All conversations. progress: hears how many requests are done.

    perf_counter is one clock for all processes of a machine, so completions of several can be compared.
    """
    seats = min(traffic.concurrency or len(conversations), len(conversations))
    processes = max(1, min(processes, seats, os.cpu_count() or 1))
    work = list(zip(arrivals(len(conversations), traffic, seed), conversations, strict=True))
    context = multiprocessing.get_context("spawn")  # the progress bar has a thread, which a fork would not survive
    done, gate = context.Value("q", 0), context.Barrier(processes)
    with concurrent.futures.ProcessPoolExecutor(processes, context, _begin, (done, gate)) as pool:
        futures = [
            pool.submit(_process, target, asking, work[i::processes], len(range(i, seats, processes)), seed + i)
            for i in range(processes)
        ]
        while concurrent.futures.wait(futures, 0.1, concurrent.futures.FIRST_EXCEPTION).not_done:
            progress(done.value)
            if any(future.done() and future.exception() for future in futures):
                gate.abort()
        results = [future.result() for future in futures]
    completions = [completion for share, _ in results for completion in share]
    seconds = max(c.ended for c in completions) - min(c.started for c in completions)
    return Run(completions, seconds, max(cpu for _, cpu in results) / seconds)


_done: Any = None
_gate: Any = None


def _begin(done: Any, gate: Any) -> None:
    global _done, _gate
    _done, _gate = done, gate
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends it without a word


def _process(
    target: Target, asking: Asking, work: list[tuple[float, Conversation]], seats: int, seed: int
) -> tuple[list[Completion], float]:
    """One process's share. Returns also the CPU seconds that it took. All processes begin together."""
    _gate.wait(START_S)
    cpu = time.process_time()
    return asyncio.run(_share(target, asking, work, seats, seed)), time.process_time() - cpu


async def _share(
    target: Target, asking: Asking, work: list[tuple[float, Conversation]], seats: int, seed: int
) -> list[Completion]:
    started = time.perf_counter()
    queue = iter(work)
    source = random.Random(seed)
    completions: list[Completion] = []

    async def seat() -> None:
        for delay, conversation in queue:
            if (early := started + delay - time.perf_counter()) > 0:
                await asyncio.sleep(early)
            await _converse(target, asking, conversation, source, completions)

    await asyncio.gather(*(seat() for _ in range(seats)))
    return completions


async def _converse(
    target: Target, asking: Asking, conversation: Conversation, source: random.Random, completions: list[Completion]
) -> None:
    """Turn by turn; one that fails ends it."""
    dialect = DIALECTS[asking.backend]
    prompt, done = dialect.begin(conversation[0].part), None
    for turn in conversation:
        if done is not None:
            # A server that does not say the answer's ids is sent made-up ones of its length.
            prompt = dialect.go_on(prompt, done, turn.part, lambda count: ids(source, count))
        done = await complete(target, asking, prompt, turn.output)
        completions.append(done)
        with _done.get_lock():
            _done.value += 1
        if done.error:
            return
