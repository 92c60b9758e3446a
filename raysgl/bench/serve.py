"""A running server under load: one point, or a sweep over rates or requests in flight."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from raysgl.bench import fleet, load, sharegpt
from raysgl.bench.client import HTTPFailure, Target
from raysgl.bench.dialects import DIALECTS, Asking
from raysgl.bench.figures import Targets, add_one, add_points, figures
from raysgl.bench.fleet import Traffic
from raysgl.bench.progress import Stage
from raysgl.bench.prompts import Conversation, Draw, Lengths, Shape, ids, make, words
from raysgl.bench.report import Report

WARM_UP_TOKENS = 16


@dataclass(frozen=True)
class Dataset:
    """Prompts from a file. tokenizer: counts tokens instead of the server. exact: answers have `Shape.output` tokens, not the
    real ones' length."""

    path: Path
    tokenizer: Path | None = None
    exact: bool = False
    context: int = 0


@dataclass(frozen=True)
class Settings:
    """points: one run for each. warm_up: requests before the first. text: send words, not token ids. flush: empty the server's
    prefix cache before each run."""

    target: Target
    asking: Asking
    shape: Shape
    points: list[Traffic]
    targets: Targets = field(default_factory=Targets)
    dataset: Dataset | None = None
    text: bool = False
    flush: bool = False
    warm_up: int = 1
    processes: int = 4
    seed: int = 1


def run(settings: Settings, stage: Stage) -> Report:
    """Raises ValueError or HTTPFailure where nothing can be measured; failures of single requests are counted."""
    asking, points = settings.asking, settings.points
    source = _source(settings, stage)
    warm_up(settings.target, asking, settings.warm_up, draw_of(asking, settings.text), stage)
    runs = []
    for number, traffic in enumerate(points):
        conversations = source(number)
        if settings.flush:
            asyncio.run(load.flush(settings.target))
        total = sum(map(len, conversations))
        what = str(traffic) if len(points) == 1 else f"{traffic} ({number + 1} of {len(points)})"
        stage(what, 0, total)
        runs.append(
            fleet.run(
                settings.target,
                asking,
                conversations,
                traffic,
                processes=settings.processes,
                seed=settings.seed + number,
                progress=lambda done, what=what, total=total: stage(what, done, total),  # type: ignore[misc]
            )
        )
        if not runs[-1].good:
            raise ValueError(f"no request succeeded: {runs[-1].errors[0]}")
    report = Report(f"{asking.model}, {asking.backend}{'' if asking.stream else ', not streamed'}: {_what(settings)}")
    found = [figures(done, settings.targets, asking.stream) for done in runs]
    for point, traffic in zip(found, points, strict=True):
        point |= {"load": str(traffic), "rate": _finite(traffic.rate), "concurrency": traffic.concurrency}
    if len(points) == 1:
        add_one(report, found[0], next(iter(runs[0].errors), ""))
    else:
        add_points(report, found)
    report.data["points"] = found
    return report


def warm_up(target: Target, asking: Asking, count: int, draw: Draw, stage: Stage) -> None:
    """Short requests, one after the other. ValueError where one fails: then nothing can be measured."""
    if not count:
        return
    stage("warming up")
    shape = Shape(count, Lengths.exactly(WARM_UP_TOKENS), Lengths.exactly(WARM_UP_TOKENS))

    async def ask() -> None:
        for conversation in make(shape, draw, "warm up"):
            done = await load.complete(target, asking, DIALECTS[asking.backend].begin(conversation[0].part), WARM_UP_TOKENS)
            if done.error:
                raise ValueError(done.error)

    asyncio.run(ask())


def draw_of(asking: Asking, text: bool) -> Draw:
    """What random prompts are made of: token ids where the backend takes them."""
    return ids if DIALECTS[asking.backend].takes_ids and not text else words


async def model_of(target: Target) -> str:
    """The model that a server lists first. ValueError where it lists none."""
    try:
        return await load.first_model(target)
    except (HTTPFailure, LookupError, ValueError) as error:
        raise ValueError(f"no model found at {target.host}:{target.port}: {error}; name one with --model") from None


def _source(settings: Settings, stage: Stage) -> Callable[[int], list[Conversation]]:
    """The conversations of each run, by its number: other ones each time, so that none is in the cache already."""
    shape, dataset = settings.shape, settings.dataset
    if dataset is None:
        draw = draw_of(settings.asking, settings.text)
        return lambda number: make(shape, draw, f"serve-{settings.seed}-{number}")
    stage(f"reading {dataset.path.name}")
    count: sharegpt.Count = sharegpt.by_server(settings.target, settings.asking.model)
    if dataset.tokenizer is not None:
        count = sharegpt.by_file(dataset.tokenizer)
    elif dataset.exact:
        count = sharegpt.by_words
    output = shape.output if dataset.exact else None
    choice = sharegpt.Choice(shape.count * len(settings.points), shape.turns, output, dataset.context)
    found = asyncio.run(sharegpt.choose(sharegpt.read(dataset.path), choice, count, str(settings.seed)))

    def some(number: int) -> list[Conversation]:
        """Where the file has too few for all runs, each takes the same."""
        if len(found) < choice.count:
            return found[: shape.count]
        return found[number * shape.count : (number + 1) * shape.count]

    return some


def _what(settings: Settings) -> str:
    shape, dataset = settings.shape, settings.dataset
    if dataset is not None:
        return f"{shape.count} of {dataset.path.name}"
    parts = [f"{shape.count} {'requests' if shape.turns == 1 else f'conversations of {shape.turns} turns'}"]
    parts.append(f"{shape.own} tokens in, {shape.output} out")
    if shape.shared:
        parts.append(f"after {shape.shared} shared by {'all' if shape.groups == 1 else f'{shape.groups} groups'}")
    return ", ".join(parts)


def _finite(rate: float) -> float | None:
    """None for as fast as it goes: JSON has no infinity."""
    return None if math.isinf(rate) else rate
