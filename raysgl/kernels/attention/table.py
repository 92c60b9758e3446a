"""Which attention backend is faster on this kind of GPU, as measured.

A table is a file `attention_tables/<device name>.json`, written by `python -m raysgl.bench.kernels backends --attention-table FILE`.
"model": heads, head dim and page size of the model that was measured. "times": [kind of step, shape, microseconds a layer by
backend]; in steps with both prompts and decode rows, FlashAttention's ways of running them (`FlashAttnBackend.mixed`) are told apart.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

import torch

from raysgl.kernels.linear_table import file_name

FOLDER = Path(__file__).parent.parent / "attention_tables"
KINDS = {"decode": ("decode",), "prefill": ("prompts", "mixed")}
"""Which measured steps speak for a backend of each kind."""


@dataclass(frozen=True)
class Rank:
    """slowness: times of the fastest one's, the geometric mean over the shapes measured. way: of FlashAttention, "" for others."""

    slowness: float
    backend: str
    way: str


def read(device: torch.device, head_dim: int) -> tuple[str, str]:
    """The table of this device for models of this head dim: its text and file name; empty if nothing was measured."""
    if device.type != "cuda":
        return "", ""
    path = FOLDER / file_name(torch.cuda.get_device_name(device))
    if not path.is_file():
        return "", ""
    text = path.read_text()
    return (text, path.name) if json.loads(text)["model"]["head_dim"] == head_dim else ("", "")


def ranking(text: str, kind: str) -> list[Rank]:
    """Backends for "decode" or "prefill" by slowness; only those that were measured at every shape."""
    shapes = [times for step, _, times in json.loads(text)["times"] if step in KINDS[kind]]
    names = {name for times in shapes for name in times}
    ranks = []
    for name in names:
        backend, _, way = name.partition(" ")
        # Steps of one sort of rows know no ways.
        own = [times.get(name, times.get(backend)) for times in shapes]
        if None in own or (not way and any(f"{backend} " in other for times in shapes for other in times)):
            continue
        slowness = [took / min(times.values()) for took, times in zip(own, shapes, strict=True)]
        ranks.append(Rank(math.exp(sum(map(math.log, slowness)) / len(slowness)), backend, way))
    return sorted(ranks, key=lambda rank: rank.slowness)
