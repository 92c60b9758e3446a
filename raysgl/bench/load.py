"""Requests to a server from this process, many at a time, and what they took. `raysgl.bench.fleet` does it from several processes."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Callable
from dataclasses import dataclass

from raysgl.bench.client import HTTPFailure, Target, events, request
from raysgl.bench.dialects import DIALECTS, Asking, Completion, Prompt

TEXT = (
    "The harbour lay quiet before dawn, and the first boats went out past the lighthouse while the town was still asleep. "
    "Nobody could say when the old bridge had been built, but every child knew the story of the mason who counted stones. "
    "In spring the river rises by two metres; engineers measure it each morning and write the figure on a slate. "
)
"""Where prompts come from: its token ids, shuffled. Any tokenizer knows these words."""


@dataclass
class Run:
    """What a load run measured. busiest: the largest share of a core that a client process used (0.0: not measured)."""

    completions: list[Completion]
    seconds: float
    busiest: float = 0.0

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


async def complete(target: Target, asking: Asking, prompt: Prompt, tokens: int) -> Completion:
    """One greedy answer of `tokens` tokens. Failures are in `error`.

    Where the server does not say how many tokens it made, events count.
    """
    dialect = DIALECTS[asking.backend]
    body = dialect.body(asking, prompt, tokens)
    result = Completion(started=time.perf_counter(), asked=tokens)

    def take(data: bytes) -> None:
        now = time.perf_counter()
        event = json.loads(data)
        if event.get("error"):
            raise HTTPFailure(0, str(event["error"]))
        if dialect.read(event, asking, result):
            result.arrivals.append(now)

    try:
        if asking.stream:
            async for data in events(target, dialect.path, body):
                take(data)
        else:
            status, whole = await request(target, "POST", dialect.path, body)
            if status != 200:
                raise HTTPFailure(status, whole.decode(errors="replace")[:500])
            take(whole)
    except HTTPFailure as failure:
        result.error = str(failure)
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        result.error = f"{dialect.path} answered with something else than the backend {asking.backend} does: {error!r}"
    result.ended = time.perf_counter()
    result.output_tokens = result.output_tokens or len(result.arrivals)
    return result


async def run(
    target: Target,
    asking: Asking,
    prompts: list[list[int]],
    tokens: int,
    concurrency: int,
    progress: Callable[[int], None] = lambda done: None,
) -> Run:
    """All prompts, `concurrency` at a time."""
    waiting = iter(prompts)
    completions: list[Completion] = []

    async def worker() -> None:
        for prompt in waiting:
            completions.append(await complete(target, asking, prompt, tokens))
            progress(len(completions))

    started = time.perf_counter()
    await asyncio.gather(*(worker() for _ in range(concurrency)))
    return Run(completions, time.perf_counter() - started)


async def first_model(target: Target) -> str:
    """The model that a server lists first. Raises `HTTPFailure`."""
    return (await _answer(target, "GET", "/v1/models"))["data"][0]["id"]


async def tokenize(target: Target, model: str, text: str) -> list[int]:
    """By the server's /tokenize, as raysgl, SGLang and vLLM have it. Raises `HTTPFailure`."""
    return (await _answer(target, "POST", "/tokenize", {"model": model, "prompt": text, "add_special_tokens": False}))["tokens"]


async def flush(target: Target) -> None:
    """Empty the server's prefix cache, as raysgl and SGLang can. ValueError where it does not."""
    status, answer = await request(target, "POST", "/flush_cache")
    if status != 200:
        raise ValueError(f"the server did not flush its cache: HTTP {status}: {answer.decode(errors='replace')[:200]}")


async def make_prompts(
    target: Target, model: str, count: int, length: int, *, shared: int = 0, seed: int = 0
) -> list[list[int]]:
    """`count` prompts of `length` token ids, the first `shared` of them the same in all. Raises `HTTPFailure`."""
    return shuffled_prompts(await tokenize(target, model, TEXT), count, length, shared=shared, seed=seed)


def shuffled_prompts(ids: list[int], count: int, length: int, *, shared: int = 0, seed: int = 0) -> list[list[int]]:
    """Prompts drawn from `ids`, the same for the same seed."""
    draw = random.Random(seed)
    prefix = draw.choices(ids, k=shared)
    return [prefix + draw.choices(ids, k=length - shared) for _ in range(count)]


async def _answer(target: Target, method: str, path: str, body: dict | None = None) -> dict:
    status, answer = await request(target, method, path, body)
    if status != 200:
        raise HTTPFailure(status, answer.decode(errors="replace")[:500])
    return json.loads(answer)
