"""Reading checkpoint tensors, and filling a model's parameters with them.

Every source offers names with shapes, and chunks of tensors: a rank reads from disk only what it holds.
"""

from __future__ import annotations

import json
import logging
import math
import re
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn

from raysgl.models import streaming
from raysgl.models.gguf_index import TENSOR_INDEX, read_tensor
from raysgl.models.hf_config import ModelError
from raysgl.models.layers import Piece, checkpoint_table
from raysgl.models.safetensors_files import SafetensorsSource
from raysgl.models.streaming import Chunk

__all__ = ["GGUFSource", "Progress", "SafetensorsSource", "TensorSource", "fill_random", "kv_scales", "load"]

log = logging.getLogger(__name__)

Progress = Callable[[float, str], None]
"""Called with how much is done (0 to 1) and with what, in a few words."""

KV_SCALE = re.compile(r"\.layers\.(\d+)\.self_attn(?:\.[kv]_proj|\.attn)?\.([kv])_scale$")

GGUF_CHUNK_BYTES = 2 << 20
"""As float32. Dequantising passes over its blocks several times, so they should stay in a core's cache."""
SHOWN = 6
"""Names listed in an error."""


class TensorSource(Protocol):
    """shapes: of all tensors, by name, in the order in which they are best read."""

    shapes: dict[str, tuple[int, ...]]

    def chunks(self, piece: Piece) -> Iterator[Chunk]:
        """What fills the piece's target; in sum this rank's part of the tensor and no more."""

    def number(self, name: str) -> float:
        """A tensor of one element."""


class GGUFSource:
    """A GGUF file, dequantised to float32. `folder` is its converted folder."""

    def __init__(self, path: Path, folder: Path):
        self._path = path
        self._index = json.loads((folder / TENSOR_INDEX).read_text())
        self.shapes = {name: tuple(entry["shape"]) for name, entry in self._index.items()}

    def chunks(self, piece: Piece) -> Iterator[Chunk]:
        entry = self._index[piece.name]
        # Of permuted heads only whole ones can be read.
        unit = entry["shape"][0] // entry["heads"] if entry["heads"] else 1
        row_bytes = 4 * math.prod(entry["shape"][1:])
        rows = max(1, GGUF_CHUNK_BYTES // (unit * row_bytes)) * unit
        for first in range(0, len(piece.target), rows):
            target = piece.target[first : first + rows]
            yield Chunk(target, torch.float32, partial(self._read, entry, piece, first, len(target)))

    def number(self, name: str) -> float:
        return float(read_tensor(self._path, self._index[name]).reshape(()))

    def _read(self, entry: dict[str, Any], piece: Piece, first: int, count: int, into_B: np.ndarray) -> None:
        start = piece.start + first if piece.dim == 0 else first
        part = read_tensor(self._path, entry, start, start + count)
        if piece.dim == 1:
            part = part[:, piece.start : piece.start + piece.length]
        np.copyto(into_B.view(np.float32).reshape(part.shape), part)


def load(model: nn.Module, source: TensorSource, progress: Progress | None = None) -> None:
    """Fill every parameter. Raises `ModelError` naming the tensors that are missing, too many or of another shape."""
    table = check(model, source)
    pieces = [table[name] for name in source.shapes if name in table]
    chunks = [chunk for piece in pieces if piece.length for chunk in source.chunks(piece)]
    fill(model, chunks, "loading weights", progress)


def fill(model: nn.Module, chunks: Sequence[Chunk], what: str, progress: Progress | None) -> None:
    """Read chunks into the model's parameters, telling how far it is."""
    total = sum(chunk.target.numel() for chunk in chunks)
    done = 0

    def placed(chunk: Chunk) -> None:
        nonlocal done
        done += chunk.target.numel()
        if progress:
            progress(done / total, what)

    if progress:
        progress(0.0, what)
    started = time.perf_counter()
    streaming.fill(chunks, next(model.parameters()).device, placed)
    size, seconds = sum(chunk.num_bytes for chunk in chunks) / 1e6, time.perf_counter() - started
    log.info("%s: %.0f MB in %.2f s, %.0f MB/s", what, size, seconds, size / seconds)


def kv_scales(source: TensorSource) -> dict[tuple[int, int], float]:
    """What a checkpoint says that keys (0) and values (1) of a layer are divided by in a cache of 8 bits: (layer, 0 or 1) -> scale.

    Names as llm-compressor and AutoFP8 write them: model.layers.<n>.self_attn[.k_proj or .attn].k_scale, a number each.
    """
    found = {}
    for name, shape in source.shapes.items():
        if (match := KV_SCALE.search(name)) and math.prod(shape) == 1:
            found[int(match[1]), "kv".index(match[2])] = source.number(name)
    return found


def check(model: nn.Module, source: TensorSource) -> dict[str, Piece]:
    """Where each of the source's tensors goes. Raises `ModelError` as `load` does."""
    table, shapes, kind = checkpoint_table(model), source.shapes, type(model).__name__
    missing = [name for name in table if name not in shapes]
    if missing:
        raise ModelError(f"the checkpoint lacks {_listed(missing)}, which {kind} needs")
    unexpected = [name for name in shapes if name not in table and not _ignorable(name, table)]
    if unexpected:
        raise ModelError(f"the checkpoint has {_listed(unexpected)}, which {kind} as configured has no place for")
    wrong = [
        f"{name} {list(shapes[name])} instead of {list(piece.shape)}"
        for name, piece in table.items()
        if shapes[name] != piece.shape
    ]
    if wrong:
        raise ModelError(f"the checkpoint's tensors do not have the shapes of its config.json: {_listed(wrong)}")
    return table


def _ignorable(name: str, table: dict[str, Piece]) -> bool:
    """Old checkpoints store rotary frequencies, some scales of keys and values (`kv_scales`), and some with tied embeddings store the output layer as well."""
    return name.endswith((".rotary_emb.inv_freq", ".k_scale", ".v_scale")) or (name == "lm_head.weight" and name not in table)


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ("1 tensor: " if len(names) == 1 else f"{len(names)} tensors: ") + ", ".join(names[:SHOWN]) + more


def fill_random(model: nn.Module, seed: int, progress: Progress | None = None) -> None:
    """Random weights that keep activations near 1, made on the device. The same seed, shape and device give the same."""
    parameters: list[tuple[str, nn.Parameter]] = list(model.named_parameters())
    generator = torch.Generator(device=parameters[0][1].device).manual_seed(seed)
    for count, (name, parameter) in enumerate(parameters, 1):
        if name.lower().endswith("norm.weight"):
            parameter.fill_(1.0)
        else:
            spread = 0.02 if name.endswith(".bias") else 1 / math.sqrt(parameter.shape[-1])
            parameter.normal_(0.0, spread, generator=generator)
        if progress:
            progress(count / len(parameters), "making random weights")
