"""`raysgl bench routing` and `raysgl bench index`: options, progress and output."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, get_args

import msgspec
import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from raysgl.bench.engine_commands import SMOLLM2, ModelPath
from raysgl.bench.show import Json, show


def routing(
    workload: Annotated[
        Path | None, typer.Option(metavar="FILE", help="a trace: JSON lines with at, tokens or hashes, output, session")
    ] = None,
    only: Annotated[str, typer.Option(help="synthetic workloads to run, by comma; default: all")] = "",
    replicas: Annotated[str, typer.Option(help="cluster sizes, by comma")] = "4,16,64,256",
    policies: Annotated[str, typer.Option(help="policies to run, by comma; default: all")] = "",
    calibration: Annotated[Path | None, typer.Option(metavar="FILE", help="JSON with measured figures of one replica")] = None,
    page_size: Annotated[
        int, typer.Option(min=0, help="tokens of a page, such as a trace's hashes stand for; 0: the calibration's")
    ] = 0,
    seeds: Annotated[int, typer.Option(min=0, help="draws of each workload; 0: more for small clusters")] = 0,
    size: Annotated[int, typer.Option(min=0, help="requests per replica; 0: the usual 160")] = 0,
    load: Annotated[
        float, typer.Option(min=0.0, help="peak load, as a multiple of the replicas' capacity; 0: each workload's own")
    ] = 0.0,
    ttft: Annotated[float, typer.Option(min=0.001, help="target: seconds to the first token")] = 1.0,
    tpot: Annotated[float, typer.Option(min=0.001, help="target: seconds per further token")] = 0.05,
    jobs: Annotated[int, typer.Option(min=0, help="processes; 0: one for each core")] = 0,
    json: Json = False,
) -> None:
    """Simulate clusters under several routing policies: good requests per second of each (docs/routing.md)."""
    from raysgl.bench.report import environment
    from raysgl.bench.routing.calibration import load_calibration
    from raysgl.bench.routing.cluster import Targets
    from raysgl.bench.routing.sweep import POLICIES, Settings, as_json, sweep, table
    from raysgl.bench.routing.workloads import WORKLOADS

    console = Console(stderr=True)
    try:
        replica = load_calibration(calibration)
        if page_size:
            replica = msgspec.structs.replace(replica, page_size=page_size)
        settings = Settings(
            workloads=_names(only, WORKLOADS, "workload"),
            replicas=tuple(int(part) for part in replicas.split(",")),
            policies=_names(policies, POLICIES, "policy"),
            seeds=seeds,
            size=size,
            load=load,
            calibration=replica,
            targets=Targets(ttft, tpot),
            trace=workload,
            jobs=jobs,
        )
        columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:.0f}%"), TimeElapsedColumn())
        with Progress(*columns, console=console, transient=True) as bar:
            task = bar.add_task("simulating")
            results = sweep(
                settings, lambda done, of, what: bar.update(task, completed=done, total=of, description=what or "simulating")
            )
    except (ValueError, OSError) as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(1) from None
    if json:
        print(as_json(results))
        return
    out = Console()
    for name, value in environment().items():
        out.print(f"{name}: {value}", highlight=False, soft_wrap=True)
    out.print(table(results, settings))


def index(
    pages: Annotated[int, typer.Option(min=1000, help="distinct pages in the large index")] = 20_000_000,
    replicas: Annotated[int, typer.Option(min=1)] = 64,
    copies: Annotated[int, typer.Option(min=1, help="replicas that hold each page")] = 3,
    seconds: Annotated[float, typer.Option(min=0.5, help="how long to decide")] = 10.0,
    json: Json = False,
) -> None:
    """Fill a prefix index, then route 64-page prompts while KV events stream in: memory, decisions/s, latency of a batch."""
    from raysgl.bench.report import Report
    from raysgl.bench.routing.index_load import measure

    report = Report(f"index of {pages:,} pages on {replicas} replicas, {copies} copies of each")
    with Console(stderr=True).status("starting") as status:
        measure(report, pages, min(copies, replicas), replicas, seconds, status.update)
    report.show(json)


def cluster(
    model_path: ModelPath = SMOLLM2,
    policies: Annotated[str, typer.Option(help="routing policies, by comma")] = "round_robin,least_loaded,cache_aware,raysgl",
    replicas: Annotated[int, typer.Option(min=1)] = 4,
    requests: Annotated[int, typer.Option(min=1)] = 96,
    concurrency: Annotated[int, typer.Option(min=1, help="requests in flight")] = 8,
    groups: Annotated[int, typer.Option(min=1, help="shared prefixes, by Zipf's law")] = 12,
    prefix_len: Annotated[int, typer.Option(min=1, help="tokens of a shared prefix")] = 256,
    own_len: Annotated[int, typer.Option(min=1, help="tokens of a prompt behind it")] = 24,
    output_len: Annotated[int, typer.Option(min=1)] = 8,
    kv_tokens: Annotated[int, typer.Option(min=1, help="each replica's KV pool")] = 2048,
    seed: int = 1,
    cores: Annotated[float, typer.Option(min=0.0, help="of CPU for each engine, by a control group; 0: no limit")] = 0.0,
    json: Json = False,
) -> None:
    """Routing policies on real engines on this CPU: the same prompts once under each, on a server of its own."""
    from raysgl.bench.cluster import Settings, run
    from raysgl.config import ServerConfig

    known = dict.fromkeys(get_args(ServerConfig.model_fields["routing_policy"].annotation))
    try:
        chosen = _names(policies, known, "policy")
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    settings = Settings(
        model_path, chosen, replicas, requests, concurrency, groups, prefix_len, own_len, output_len, kv_tokens, seed, cores
    )
    show(json, lambda stage: run(settings, stage))


def _names(text: str, known: dict, what: str) -> tuple[str, ...]:
    names = tuple(part.strip() for part in text.split(",") if part.strip()) or tuple(known)
    for name in names:
        if name not in known:
            raise ValueError(f"there is no {what} {name!r}; there are {', '.join(known)}")
    return names
