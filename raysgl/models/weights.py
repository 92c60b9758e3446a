"""Reading checkpoint tensors, and filling a model's parameters with them.

Every source offers names with shapes, and parts of tensors: a rank reads from disk only what it holds.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from safetensors import safe_open
from torch import nn

from raysgl.models.gguf_index import TENSOR_INDEX, read_tensor
from raysgl.models.hf_config import ModelError
from raysgl.models.layers import Piece, checkpoint_table

Progress = Callable[[float, str], None]
"""Called with how much is done (0 to 1) and with what, in a few words."""

KV_SCALE = re.compile(r"\.layers\.(\d+)\.self_attn(?:\.[kv]_proj|\.attn)?\.([kv])_scale$")

SHOWN = 6
"""Names listed in an error."""


class TensorSource(Protocol):
    """shapes: of all tensors, by name, in the order in which they are best read."""

    shapes: dict[str, tuple[int, ...]]

    def read(self, name: str, dim: int, start: int, length: int) -> torch.Tensor:
        """[start, start + length) along `dim`, on cpu, in the checkpoint's dtype."""


class SafetensorsSource:
    """Memory-mapped safetensors files."""

    def __init__(self, files: Sequence[Path]):
        self.shapes: dict[str, tuple[int, ...]] = {}
        self._file_of = {}
        for path in files:
            file = safe_open(path, framework="pt")
            names = file.keys()
            for name in names:
                self.shapes[name] = tuple(file.get_slice(name).get_shape())
                self._file_of[name] = file

    def read(self, name: str, dim: int, start: int, length: int) -> torch.Tensor:
        if not self.shapes[name]:  # a number; it has nothing to slice
            return self._file_of[name].get_tensor(name)
        part = self._file_of[name].get_slice(name)
        return part[start : start + length] if dim == 0 else part[:, start : start + length]


class GGUFSource:
    """A GGUF file, dequantised tensor by tensor to float32. `folder` is its converted folder."""

    def __init__(self, path: Path, folder: Path):
        self._path = path
        self._index = json.loads((folder / TENSOR_INDEX).read_text())
        self.shapes = {name: tuple(entry["shape"]) for name, entry in self._index.items()}

    def read(self, name: str, dim: int, start: int, length: int) -> torch.Tensor:
        entry = self._index[name]
        if dim == 0:
            return torch.from_numpy(np.require(read_tensor(self._path, entry, start, start + length), requirements="W"))
        return torch.from_numpy(np.require(read_tensor(self._path, entry), requirements="W")).narrow(dim, start, length)


def load(model: nn.Module, source: TensorSource, progress: Progress | None = None) -> None:
    """Fill every parameter. Raises `ModelError` naming the tensors that are missing, too many or of another shape."""
    table = checkpoint_table(model)
    _check(table, source.shapes, model)
    names = [name for name in source.shapes if name in table]
    total = sum(table[name].target.numel() for name in names)
    done = 0
    for name in names:
        piece = table[name]
        if piece.length:
            piece.target.copy_(source.read(name, piece.dim, piece.start, piece.length))
        done += piece.target.numel()
        if progress:
            progress(done / total, "loading weights")


def kv_scales(source: TensorSource) -> dict[tuple[int, int], float]:
    """What a checkpoint says that keys (0) and values (1) of a layer are divided by in a cache of 8 bits: (layer, 0 or 1) -> scale.

    Names as llm-compressor and AutoFP8 write them: model.layers.<n>.self_attn[.k_proj or .attn].k_scale, a number each.
    """
    found = {}
    for name, shape in source.shapes.items():
        if (match := KV_SCALE.search(name)) and math.prod(shape) == 1:
            found[int(match[1]), "kv".index(match[2])] = float(source.read(name, 0, 0, 1))
    return found


def _check(table: dict[str, Piece], shapes: dict[str, tuple[int, ...]], model: nn.Module) -> None:
    kind = type(model).__name__
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
