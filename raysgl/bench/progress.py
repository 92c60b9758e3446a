"""What a benchmark is doing, on stderr: a spinner, or a bar where it counts. Nothing where stderr is no terminal."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Protocol


class Stage(Protocol):
    """Says what is being done now, and how much of it: `done` of `total` requests (0: nothing is counted)."""

    def __call__(self, what: str, done: int = 0, total: int = 0) -> None: ...


@contextlib.contextmanager
def shown() -> Iterator[Stage]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        SpinnerColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    console = Console(stderr=True)
    columns = (
        *(SpinnerColumn(), TextColumn("{task.description}"), BarColumn()),
        *(MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn()),
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("starting", total=None)
        last = "starting"

        def stage(what: str, done: int = 0, total: int = 0) -> None:
            nonlocal last
            if what != last:
                last = what
                progress.reset(task, description=what, total=total or None)
            progress.update(task, completed=done, total=total or None)

        yield stage
