"""Many completions at a time against a server, and what they took."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from raysgl.bench.client import HTTPFailure, Target, events, request
from raysgl.bench.report import Report, percentile

TEXT = (
    "The harbour lay quiet before dawn, and the first boats went out past the lighthouse while the town was still asleep. "
    "Nobody could say when the old bridge had been built, but every child knew the story of the mason who counted stones. "
    "In spring the river rises by two metres; engineers measure it each morning and write the figure on a slate. "
)
"""Where prompts come from: its token ids, shuffled. Any tokenizer knows these words."""


@dataclass
class Completion:
    """One request's course; times are time.perf_counter() seconds. `error` is empty when all went well."""

    started: float
    arrivals: list[float] = field(default_factory=list)
    ended: float = 0.0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    token_ids: list[int] = field(default_factory=list)
    error: str = ""

    @property
    def ttft(self) -> float:
        return self.arrivals[0] - self.started

    @property
    def tpot(self) -> float:
        """Seconds per token after the first."""
        return (self.arrivals[-1] - self.arrivals[0]) / max(1, self.output_tokens - 1)


@dataclass
class Run:
    """What a load run measured."""

    completions: list[Completion]
    seconds: float

    @property
    def good(self) -> list[Completion]:
        return [c for c in self.completions if not c.error and c.arrivals]

    @property
    def errors(self) -> list[str]:
        return [c.error or "no token came" for c in self.completions if c.error or not c.arrivals]

    @property
    def output_rate(self) -> float:
        """Output tokens per second, of all streams together."""
        return sum(c.output_tokens for c in self.good) / self.seconds

    def add_to(self, report: Report) -> None:
        """Append the usual figures to a report, times in milliseconds."""
        good = self.good
        gaps = [after - before for c in good for before, after in zip(c.arrivals, c.arrivals[1:], strict=False)]
        report.add("requests", "requests", len(self.completions))
        report.add("errors", "errors", len(self.errors), self.errors[0][:80] if self.errors else "")
        report.add("seconds", "duration", self.seconds, "s")
        report.add("request_rate", "throughput", len(good) / self.seconds, "requests/s")
        report.add("output_rate", "throughput", self.output_rate, "output tokens/s")
        report.add("prompt_tokens", "prompt tokens", sum(c.prompt_tokens for c in good))
        report.add("cached_tokens", "of them cached", sum(c.cached_tokens for c in good))
        report.add("output_tokens", "output tokens", sum(c.output_tokens for c in good))
        for key, name, values in (
            ("ttft", "time to first token", [c.ttft for c in good]),
            ("tpot", "time per output token", [c.tpot for c in good]),
            ("itl", "between chunks", gaps),
            ("e2e", "whole request", [c.ended - c.started for c in good]),
        ):
            for label, share in (("p50", 0.5), ("p90", 0.9), ("p99", 0.99)):
                report.add(f"{key}_{label}_ms", f"{name}, {label}", 1000 * percentile(values, share), "ms")


async def complete(
    target: Target,
    model: str,
    prompt: list[int] | str,
    max_tokens: int,
    *,
    return_token_ids: bool = False,
    extra: dict | None = None,
) -> Completion:
    """One greedy streamed completion of exactly `max_tokens` tokens. Failures are in `error`. extra: other fields of its body."""
    body: dict = {"return_token_ids": True} if return_token_ids else {}
    body |= {
        "model": model,
        "prompt": prompt,
        "max_tokens": max_tokens,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    body |= extra or {}
    result = Completion(started=time.perf_counter())
    try:
        async for data in events(target, "/v1/completions", body):
            now = time.perf_counter()
            event = json.loads(data)
            if "error" in event:
                raise HTTPFailure(0, str(event["error"]))
            if choices := event.get("choices"):
                result.arrivals.append(now)
                result.token_ids += choices[0].get("token_ids") or ()
            if usage := event.get("usage"):
                result.prompt_tokens = usage["prompt_tokens"]
                result.output_tokens = usage["completion_tokens"]
                result.cached_tokens = (usage.get("prompt_tokens_details") or {}).get("cached_tokens", 0)
    except HTTPFailure as failure:
        result.error = str(failure)
    result.ended = time.perf_counter()
    return result


async def run(
    target: Target,
    model: str,
    prompts: list[list[int]],
    max_tokens: int,
    concurrency: int,
    progress: Callable[[int], None] = lambda done: None,
    extra: dict | None = None,
) -> Run:
    """All prompts, `concurrency` at a time. extra: as `complete`'s."""
    waiting = iter(prompts)
    completions: list[Completion] = []

    async def worker() -> None:
        for prompt in waiting:
            completions.append(await complete(target, model, prompt, max_tokens, extra=extra))
            progress(len(completions))

    started = time.perf_counter()
    await asyncio.gather(*(worker() for _ in range(concurrency)))
    return Run(completions, time.perf_counter() - started)


async def first_model(target: Target) -> str:
    """The model that a server lists first. Raises `HTTPFailure`."""
    status, body = await request(target, "GET", "/v1/models")
    if status != 200:
        raise HTTPFailure(status, body.decode(errors="replace")[:500])
    return json.loads(body)["data"][0]["id"]


async def make_prompts(
    target: Target, model: str, count: int, length: int, *, shared: int = 0, seed: int = 0
) -> list[list[int]]:
    """`count` prompts of `length` token ids, the first `shared` of them the same in all. Raises `HTTPFailure`."""
    status, body = await request(target, "POST", "/tokenize", {"model": model, "prompt": TEXT, "add_special_tokens": False})
    if status != 200:
        raise HTTPFailure(status, body.decode(errors="replace")[:500])
    return shuffled_prompts(json.loads(body)["tokens"], count, length, shared=shared, seed=seed)


def shuffled_prompts(ids: list[int], count: int, length: int, *, shared: int = 0, seed: int = 0) -> list[list[int]]:
    """Prompts drawn from `ids`, the same for the same seed."""
    draw = random.Random(seed)
    prefix = draw.choices(ids, k=shared)
    return [prefix + draw.choices(ids, k=length - shared) for _ in range(count)]
