"""How every command ends: a report on stdout, or one sentence on stderr and exit code 1."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from raysgl.bench.progress import Stage, shown

if TYPE_CHECKING:
    from raysgl.bench.report import Report

Json = Annotated[bool, typer.Option("--json", help="print JSON instead of tables")]
Output = Annotated[Path | None, typer.Option(metavar="FILE", help="write the JSON there too")]


def show(as_json: bool, measure: Callable[[Stage], Report], output: Path | None = None) -> Report:
    """Run a benchmark under a progress line, print its report."""
    from raysgl.bench.client import HTTPFailure
    from raysgl.bench.server import ServerFailed

    if output is not None and not output.parent.is_dir():
        fail(f"--output {output}: there is no such folder")
    try:
        with shown() as stage:
            report = measure(stage)
    except (HTTPFailure, ServerFailed, RuntimeError, ValueError, OSError) as error:
        fail(str(error))
    report.show(as_json)
    if output is not None:
        output.write_text(report.as_json() + "\n")
    return report


def fail(message: str) -> NoReturn:
    typer.echo(message, err=True)
    raise typer.Exit(1)
