"""Which attention backend is faster on this kind of GPU, as measured.

A table is a file `attention_tables/<device name>.json` (`raysgl.kernels.measured`), written by `python -m raysgl.bench.kernels backends --attention-table FILE`.
"model": heads, head dim and page size of the model that was measured. "times": [kind of step, shape, microseconds a layer by backend].
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

import torch

from raysgl.kernels.measured import table_file

FOLDER = Path(__file__).parent.parent / "attention_tables"
KINDS = {"decode": ("decode",), "prefill": ("prompts", "mixed")}
"""Which measured steps speak for a backend of each kind."""


@dataclass(frozen=True)
class Rank:
    """slowness: times of the fastest one's, the geometric mean over the shapes measured."""

    slowness: float
    backend: str


def read(device: torch.device, head_dim: int) -> tuple[str, str]:
    """The table of this device for models of this head dim: its text and file name; empty if nothing was measured."""
    if device.type != "cuda" or (path := table_file(FOLDER, device)) is None:
        return "", ""
    text = path.read_text()
    return (text, path.name) if json.loads(text)["model"]["head_dim"] == head_dim else ("", "")


def ranking(text: str, kind: str, rows: int | None = None) -> list[Rank]:
    """Backends for "decode" or "prefill" by slowness; only those that were measured at every shape. rows: of decode steps of so many."""
    steps = json.loads(text)["times"]
    shapes = [times for step, shape, times in steps if step in KINDS[kind] and rows in (None, rows_of(shape))]
    ranks = []
    for name in {name for times in shapes for name in times}:
        if all(name in times for times in shapes):
            slowness = [times[name] / min(times.values()) for times in shapes]
            ranks.append(Rank(math.exp(sum(map(math.log, slowness)) / len(slowness)), name))
    return sorted(ranks, key=lambda rank: rank.slowness)


def rows_of(shape: str) -> int:
    """ "256 x 1152": 256."""
    return int(shape.partition(" ")[0])


def measured_rows(text: str) -> list[int]:
    """Numbers of decode rows that were measured."""
    return sorted({rows_of(shape) for step, shape, _ in json.loads(text)["times"] if step == "decode"})
