"""`raysgl bench serve`, `workloads` and `plot`: options of what is sent to a running server, and where the result goes."""

from __future__ import annotations

import asyncio
import json as js
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from raysgl.bench.progress import Stage
from raysgl.bench.show import Json, Output, fail, show

if TYPE_CHECKING:
    from raysgl.bench.dialects import Asking
    from raysgl.bench.fleet import Traffic
    from raysgl.bench.report import Report

T = TypeVar("T")

Url = Annotated[str, typer.Option(help="where the server is")]
Model = Annotated[str | None, typer.Option(help="default: the server's first")]
Backend = Annotated[
    str, typer.Option(help="openai: /v1/completions; openai-chat: /v1/chat/completions; sglang: /generate (SGLang, raysgl)")
]
ApiKey = Annotated[str, typer.Option(envvar="OPENAI_API_KEY", show_default=False, help="where the server wants one")]
Stream = Annotated[bool, typer.Option("--stream/--no-stream", help="answers as event streams, or whole")]
IgnoreEos = Annotated[
    bool,
    typer.Option("--ignore-eos/--no-ignore-eos", help="answers of exactly the length; servers of others may refuse the field"),
]
Text = Annotated[bool, typer.Option("--text", help="prompts of words, for servers that take no token ids (a chat never does)")]
Processes = Annotated[int, typer.Option(min=1, help="client processes")]
ExtraBody = Annotated[str, typer.Option(metavar="JSON", help="more fields of every request")]


def serve(
    url: Url = "http://127.0.0.1:30000",
    model: Model = None,
    backend: Backend = "openai",
    api_key: ApiKey = "",
    stream: Stream = True,
    num_prompts: Annotated[int, typer.Option(min=1, help="conversations, of each point of a sweep")] = 64,
    concurrency: Annotated[
        str, typer.Option(help="requests in flight at most; several by comma for a sweep; 0: no limit")
    ] = "16",
    rate: Annotated[
        str,
        typer.Option(help="requests that arrive a second; several by comma for a sweep; inf: as soon as --concurrency allows"),
    ] = "inf",
    burstiness: Annotated[float, typer.Option(help="1: Poisson arrivals; less: bursts; inf: even")] = 1.0,
    input_len: Annotated[str, typer.Option(help="tokens of each prompt, or a range: 64:256")] = "128",
    output_len: Annotated[
        str | None, typer.Option(help="tokens of each answer, or a range; default: 128, or of a dataset the real ones'")
    ] = None,
    shared_prefix_len: Annotated[int, typer.Option(min=0, help="so many tokens more before each prompt, the same ones")] = 0,
    groups: Annotated[int, typer.Option(min=1, help="different shared prefixes")] = 1,
    turns: Annotated[int, typer.Option(min=1, help="of each conversation; history is resent")] = 1,
    dataset: Annotated[
        Path | None, typer.Option(metavar="FILE", help="prompts from a ShareGPT-style JSON file: a list of `conversations`")
    ] = None,
    tokenizer: Annotated[
        Path | None, typer.Option(metavar="PATH", help="counts a dataset's tokens; default: the server's /tokenize")
    ] = None,
    context_len: Annotated[int, typer.Option(min=0, help="leave out conversations of a dataset with more tokens; 0: none")] = 0,
    text: Text = False,
    ttft: Annotated[float | None, typer.Option(min=0, help="goodput: ms to the first token at most")] = None,
    tpot: Annotated[float | None, typer.Option(min=0, help="goodput: ms per further token at most")] = None,
    e2e: Annotated[float | None, typer.Option(min=0, help="goodput: ms of a whole request at most")] = None,
    warm_up: Annotated[int, typer.Option(min=0, help="requests before the first measured one")] = 1,
    flush_cache: Annotated[
        bool, typer.Option("--flush-cache", help="empty the server's prefix cache before each point")
    ] = False,
    ignore_eos: IgnoreEos = True,
    extra_body: ExtraBody = "{}",
    processes: Processes = 4,
    seed: Annotated[int | None, typer.Option(help="of prompts and arrivals; default: other ones each time")] = None,
    json: Json = False,
    output: Output = None,
    plot: Annotated[Path | None, typer.Option(metavar="FILE", help="draw latency over throughput: .png, .svg or .pdf")] = None,
) -> None:
    """Load a running server, raysgl's or another's: throughput, latencies, goodput; a sweep over rates or requests in flight."""
    from raysgl.bench import plot as plotting
    from raysgl.bench import serve as serving
    from raysgl.bench.client import Target
    from raysgl.bench.figures import Targets
    from raysgl.bench.prompts import Lengths, Shape

    points = _points(concurrency, rate, burstiness)
    lengths = _or_fail(lambda: (Lengths.parse(input_len), Lengths.parse(output_len or "128")))
    target = _or_fail(lambda: Target.parse(url, api_key))
    asking = _asking(target, model, backend, stream, ignore_eos, turns, extra_body)
    if plot is not None:
        _or_fail(lambda: plotting.check(plot))
    if dataset is None and (tokenizer is not None or context_len):
        raise typer.BadParameter("--tokenizer and --context-len are about a --dataset")
    settings = serving.Settings(
        target=target,
        asking=asking,
        shape=Shape(num_prompts, *lengths, shared_prefix_len, groups, turns),
        points=points,
        targets=Targets(ttft, tpot, e2e),
        dataset=serving.Dataset(dataset, tokenizer, output_len is not None, context_len) if dataset else None,
        text=text,
        flush=flush_cache,
        warm_up=warm_up,
        processes=processes,
        seed=random.randrange(2**32) if seed is None else seed,
    )
    report = show(json, lambda stage: serving.run(settings, stage), output)
    if plot is not None:
        _or_fail(lambda: plotting.draw({f"{asking.model}, {backend}": report.data["points"]}, plot))


def workloads(
    names: Annotated[str, typer.Argument(help="which, such as S1,S2 or samples; all: S1 to S7")] = "all",
    url: Url = "http://127.0.0.1:30000",
    model: Model = None,
    backend: Backend = "openai",
    api_key: ApiKey = "",
    stream: Stream = True,
    text: Text = False,
    ignore_eos: IgnoreEos = True,
    extra_body: ExtraBody = "{}",
    processes: Processes = 4,
    warm_up: Annotated[int, typer.Option(min=0, help="requests before the first measured one")] = 0,
    seed: Annotated[int, typer.Option(help="of the prompts")] = 1,
    json: Json = False,
    output: Output = None,
) -> None:
    """The workloads of docs/performance.md (S1 latency to S7 multi-turn, samples of one prompt) against a running server."""
    from raysgl.bench import serve as serving
    from raysgl.bench.client import Target
    from raysgl.bench.figures import Targets, add_points, figures
    from raysgl.bench.report import Report
    from raysgl.bench.workloads import ALL, WORKLOADS, run

    chosen = list(ALL) if names == "all" else names.split(",")
    for name in chosen:
        if name not in WORKLOADS:
            raise typer.BadParameter(f"{name!r} is not one of {', '.join(WORKLOADS)}")
    target = _or_fail(lambda: Target.parse(url, api_key))
    asking = _asking(target, model, backend, stream, ignore_eos, 2 if "S7" in chosen else 1, extra_body)

    def measure(stage: Stage) -> Report:
        draw = serving.draw_of(asking, text)
        serving.warm_up(target, asking, warm_up, draw, stage)
        report, points = Report(f"{asking.model} at {url}, {backend}, seed {seed}"), []
        for name in chosen:
            done = run(target, asking, WORKLOADS[name], draw, processes, seed, stage)
            found = figures(done, Targets(), stream)
            points.append(found | {"load": f"{name} {WORKLOADS[name].what}"})
            report.data.update({f"{name}_{key}": value for key, value in found.items()})
            if done.errors:
                report.add(f"{name}_first_error", f"{name} errors", len(done.errors), done.errors[0][:120])
        add_points(report, points)
        return report

    show(json, measure, output)


def plot(
    results: Annotated[list[Path], typer.Argument(help="files that `bench serve --output` wrote; each is a curve")],
    output: Annotated[Path, typer.Option(metavar="FILE", help="what to write: .png, .svg or .pdf")],
) -> None:
    """Draw several results into one picture of latency over throughput."""
    from raysgl.bench import plot as plotting

    _or_fail(lambda: plotting.check(output))
    _or_fail(lambda: plotting.draw({path.stem: plotting.points_of(path) for path in results}, output))


def _asking(
    target: Any, model: str | None, backend: str, stream: bool, ignore_eos: bool, turns: int, extra_body: str
) -> Asking:
    from raysgl.bench import serve as serving
    from raysgl.bench.dialects import DIALECTS, Asking

    if backend not in DIALECTS:
        raise typer.BadParameter(f"--backend {backend!r} is not one of {', '.join(DIALECTS)}")
    try:
        extra = js.loads(extra_body)
    except ValueError:
        extra = None
    if not isinstance(extra, dict):
        raise typer.BadParameter(f"--extra-body {extra_body!r} is not a JSON object")
    served = model or _or_fail(lambda: asyncio.run(serving.model_of(target)))
    return Asking(served, backend, stream, ignore_eos, answers=turns > 1, extra=extra)


def _points(concurrency: str, rate: str, burstiness: float) -> list[Traffic]:
    """Every rate with every concurrency."""
    from raysgl.bench.fleet import Traffic

    try:
        seats = [int(part) for part in concurrency.split(",")]
        rates = [float(part) for part in rate.split(",")]
    except ValueError:
        raise typer.BadParameter(
            f"--concurrency {concurrency} and --rate {rate} are numbers, several of them by comma"
        ) from None
    if min(seats) < 0 or not min(rates) > 0 or not burstiness > 0 or any(map(math.isnan, rates)):
        raise typer.BadParameter("--concurrency is at least 0, --rate and --burstiness are above 0")
    return [Traffic(each, burstiness, some) for each in rates for some in seats]


def _or_fail(make: Callable[[], T]) -> T:
    try:
        return make()
    except ValueError as error:
        fail(str(error))
