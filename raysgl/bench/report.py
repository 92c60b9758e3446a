"""How a benchmark reports: the machine, the versions, the command, then tables; or all of it as JSON."""

from __future__ import annotations

import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from importlib import metadata
from typing import Any

from rich.console import Console
from rich.table import Table

PACKAGES = ("raysgl", "ray", "torch", "transformers", "uvicorn", "pyzmq")


@dataclass
class Report:
    """`rows` are (what, figure, unit or note), `tables` (columns, rows, caption); `data` holds every figure under a stable name."""

    title: str
    rows: list[tuple[str, str, str]] = field(default_factory=list)
    tables: list[tuple[list[str], list[list[str]], str]] = field(default_factory=list)
    data: dict[str, Any] = field(default_factory=dict)

    def add(self, key: str, what: str, value: float | str, note: str = "") -> None:
        shown = f"{value:,.2f}" if isinstance(value, float) else str(value)
        self.rows.append((what, shown, note))
        self.data[key] = value

    def table(self, columns: list[str], rows: list[list[str]], caption: str = "") -> None:
        """A table below the figures. The first column is text, the others are numbers."""
        self.tables.append((columns, rows, caption))

    def as_json(self) -> str:
        return json.dumps({"benchmark": self.title, **environment(), "figures": self.data}, indent=2)

    def show(self, as_json: bool) -> None:
        """Print to stdout."""
        if as_json:
            print(self.as_json())
            return
        console = Console()
        for name, value in environment().items():
            console.print(f"{name}: {value}", highlight=False, soft_wrap=True)
        console.print(self.title, highlight=False, soft_wrap=True, style="italic")
        if self.rows:
            table = Table()
            table.add_column("")
            table.add_column("figure", justify="right")
            table.add_column("")
            for row in self.rows:
                table.add_row(*row)
            console.print(table)
        for columns, rows, caption in self.tables:
            table = Table(caption=caption or None, caption_justify="left", padding=(0, 0))
            for i, column in enumerate(columns):
                table.add_column(column, justify="right" if i else "left", no_wrap=True)
            for line in rows:
                table.add_row(*line)
            console.print(table)


def environment() -> dict[str, str]:
    """What the figures depend on: machine, versions, command."""
    return {"machine": machine(), "versions": versions(), "command": "raysgl " + _command(sys.argv[1:])}


def _command(words: list[str]) -> str:
    """As it can be typed, but for what is secret."""
    hidden = [
        "--api-key=***" if word.startswith("--api-key=") else "***" if before == "--api-key" else word
        for before, word in zip(["", *words], words, strict=False)
    ]
    return shlex.join(hidden)


def machine() -> str:
    """One line: processor, cores that this process may use, memory, GPUs, system."""
    parts = [_processor(), f"{usable_cores()} cores", f"{_memory_gib():.0f} GiB", *_gpus(), platform.platform(terse=True)]
    return ", ".join(parts)


def usable_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def versions() -> str:
    """Python and the packages whose speed is measured."""
    found = [f"python {platform.python_version()}"]
    for name in PACKAGES:
        try:
            found.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            found.append(f"{name} missing")
    return ", ".join(found)


def percentile(values: list[float], share: float) -> float:
    """The value below which `share` (0 to 1) of them lie; 0.0 of none."""
    if not values:
        return 0.0
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            for line in lines:
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _memory_gib() -> float:
    import psutil

    return psutil.virtual_memory().total / 2**30


def _gpus() -> list[str]:
    if shutil.which("nvidia-smi") is None:
        return []
    query = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    found = subprocess.run(query, capture_output=True, text=True, check=False)
    return found.stdout.strip().splitlines() if found.returncode == 0 else []
