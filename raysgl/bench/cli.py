"""`raysgl bench ...`. Options in, a `Report` out; the work is in the modules beside, imported when a command runs."""

from __future__ import annotations

import asyncio
from typing import Annotated

import typer

from raysgl.bench import engine_commands, load_commands
from raysgl.bench.engine_commands import SMOLLM2, Engine, ModelPath, counts, engine_config
from raysgl.bench.routing import command
from raysgl.bench.show import Json, Output, show

bench = typer.Typer(help="Benchmarks: each prints the machine, the versions and a table.", no_args_is_help=True)
bench.command()(load_commands.serve)
bench.command()(load_commands.workloads)
bench.command()(load_commands.plot)
bench.command()(engine_commands.offline)
bench.command()(engine_commands.latency)
bench.command()(command.routing)
bench.command()(command.index)
bench.command()(command.cluster)


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
    show(json, lambda stage: asyncio.run(run(url, model, settings, stage)))


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
    show(json, lambda stage: run(settings, stage))


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

    show(json, lambda stage: run(model_path, threads, batch, steps, stage))


@bench.command()
def startup(
    model_path: ModelPath = SMOLLM2,
    engine: Engine = [],  # noqa: B006  (typer copies it)
    repeats: Annotated[int, typer.Option(min=1)] = 3,
    json: Json = False,
    output: Output = None,
) -> None:
    """Time from `raysgl serve` to the first 200, phase by phase, and from SIGTERM to the end."""
    from raysgl.bench.startup import run

    settings = engine_config(model_path, engine).model_dump(exclude_unset=True)
    show(json, lambda stage: run(settings, repeats, stage), output)


@bench.command()
def tax(
    model_path: Annotated[str, typer.Option(help="as model_path in a config; made-up: next to no model at all")] = "made-up",
    engine: Engine = [],  # noqa: B006  (typer copies it)
    streams: Annotated[str, typer.Option(help="at a time, for throughput; several by comma")] = "16,64,256",
    per_stream: Annotated[int, typer.Option(min=1, help="requests for each stream")] = 2,
    alone: Annotated[int, typer.Option(min=1, help="requests one after the other, for time to first token")] = 50,
    input_len: Annotated[int, typer.Option(min=1)] = 128,
    output_len: Annotated[int, typer.Option(min=2)] = 64,
    num_ingress: Annotated[int, typer.Option(min=1, help="of the whole stack")] = 1,
    processes: Annotated[int, typer.Option(min=1, help="client processes")] = 2,
    rounds: Annotated[int, typer.Option(min=1, help="of each side; their medians count")] = 2,
    json: Json = False,
    output: Output = None,
) -> None:
    """What Ray costs: the whole stack against the same engine in one process with plain uvicorn."""
    from raysgl.bench.tax import Load, run

    load = Load(alone, counts("streams", streams), per_stream, input_len, output_len, processes, rounds)
    config = engine_config(model_path, engine)
    show(json, lambda stage: run(config, load, {"num_ingress": num_ingress}, stage), output)


@bench.command()
def stream(
    streams: Annotated[int, typer.Option(min=1)] = 64,
    rate: Annotated[float, typer.Option(min=0.1, help="tokens per second and stream")] = 50.0,
    seconds: Annotated[float, typer.Option(min=1.0)] = 60.0,
    json: Json = False,
) -> None:
    """Streams through the ingress with a made-up engine: what everything outside the engine adds to a token's way."""
    from raysgl.bench.stream import run

    show(json, lambda stage: run(streams, rate, seconds, stage))


@bench.command()
def overload(
    model_path: Annotated[
        str, typer.Option(help="as model_path in a config: a server of its own; made-up: an engine that steps on the beat")
    ] = "made-up",
    engine: Engine = [],  # noqa: B006  (typer copies it)
    places: Annotated[int, typer.Option(min=1, help="of a model: sequences that run at a time")] = 16,
    output_len: Annotated[int, typer.Option(min=1, help="of a model: tokens of each answer")] = 16,
    factor: Annotated[float, typer.Option(min=1.0, help="times the capacity")] = 10.0,
    limit: Annotated[float, typer.Option(min=0.1, help="max_queue_seconds")] = 2.0,
    seconds: Annotated[float, typer.Option(min=5.0, help="of each load")] = 20.0,
    json: Json = False,
) -> None:
    """More requests than an engine can take: time to first token of the accepted ones, and how many it still finishes."""
    from raysgl.bench.overload import run, run_model

    if model_path == "made-up":
        show(json, lambda stage: run(factor, limit, seconds, stage))
        return
    if seconds <= 2 * limit:
        raise typer.BadParameter(f"--seconds {seconds:g} is more than twice --limit {limit:g}: the queue fills first")
    config = engine_config(model_path, engine)
    show(json, lambda stage: run_model(config, places, output_len, factor, limit, seconds, stage))
