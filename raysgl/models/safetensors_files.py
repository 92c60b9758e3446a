"""Safetensors files: what is where, and reading exactly that.

The format (huggingface.co/docs/safetensors): 8 bytes of header length, a JSON header with every tensor's dtype, shape and place, and
the tensors. The library offers tensors, not their places; reading ranges in parallel into memory of one's own needs those.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch

from raysgl.models.hf_config import ModelError
from raysgl.models.layers import Piece
from raysgl.models.streaming import CHUNK_BYTES, Chunk

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
HEADER_LIMIT = 100_000_000
"""Bytes, the library's own limit."""


@dataclass(frozen=True)
class _Stored:
    """A tensor in a file; `begin` in bytes from the file's start."""

    path: Path
    dtype: torch.dtype
    shape: tuple[int, ...]
    begin: int

    @property
    def row_bytes(self) -> int:
        return math.prod(self.shape[1:]) * self.dtype.itemsize


class SafetensorsSource:
    """Raises `ModelError` naming a file that is none, or is cut off."""

    def __init__(self, files: Sequence[Path]):
        stored = {}
        for path in files:
            stored.update(_header(path))
        order = sorted(stored, key=lambda name: (files.index(stored[name].path), stored[name].begin))
        self._stored = {name: stored[name] for name in order}
        self.shapes = {name: tensor.shape for name, tensor in self._stored.items()}

    def chunks(self, piece: Piece) -> Iterator[Chunk]:
        tensor = self._stored[piece.name]
        width = math.prod(piece.target.shape[1:]) * tensor.dtype.itemsize
        rows = max(1, CHUNK_BYTES // max(1, width))
        for first in range(0, len(piece.target), rows):
            target = piece.target[first : first + rows]
            if piece.dim == 0:
                begin = tensor.begin + (piece.start + first) * tensor.row_bytes
                yield Chunk(target, tensor.dtype, partial(_read_range, tensor.path, begin))
            else:
                column = piece.start * math.prod(tensor.shape[2:]) * tensor.dtype.itemsize
                read = partial(_read_columns, tensor, first, len(target), column, width)
                yield Chunk(target, tensor.dtype, read)

    def number(self, name: str) -> float:
        tensor = self._stored[name]
        into_B = np.empty(tensor.dtype.itemsize, np.uint8)
        _read_range(tensor.path, tensor.begin, into_B)
        return float(torch.from_numpy(into_B).view(tensor.dtype))


def _read_range(path: Path, begin: int, into_B: np.ndarray) -> None:
    """Fill `into_B` from `begin` on. Raises `ModelError` where the file ends too early."""
    file = os.open(path, os.O_RDONLY)
    try:
        done = 0
        while done < len(into_B):
            count = os.preadv(file, [memoryview(into_B)[done:]], begin + done)
            if not count:
                raise ModelError(f"{path} ends after {begin + done} bytes; it is not complete")
            done += count
    finally:
        os.close(file)


def _read_columns(tensor: _Stored, first: int, count: int, column: int, width: int, into_B: np.ndarray) -> None:
    """`width` bytes from byte `column` on, of `count` rows. Mapped memory: a system call for each row would take longer."""
    begin = tensor.begin + first * tensor.row_bytes
    rows_RB = np.memmap(tensor.path, np.uint8, "r", begin, (count, tensor.row_bytes))
    np.copyto(into_B.reshape(count, width), rows_RB[:, column : column + width])


def _header(path: Path) -> dict[str, _Stored]:
    """Raises `ModelError` for a file that is none, or is cut off."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= min(HEADER_LIMIT, size - 8):
            raise ModelError(f"{path} is not a safetensors file")
        try:
            entries = json.loads(file.read(length))
            entries.pop("__metadata__", None)
            found = {}
            for name, entry in entries.items():
                begin, end = (8 + length + offset for offset in entry["data_offsets"])
                dtype = DTYPES.get(entry["dtype"])
                if dtype is None:
                    raise ModelError(f"{path} has {name} as {entry['dtype']}, which cannot be read")
                tensor = _Stored(path, dtype, tuple(entry["shape"]), begin)
                if end - begin != math.prod(tensor.shape) * dtype.itemsize:
                    raise ModelError(f"{path} is broken: {name} has {end - begin} bytes")
                if end > size:
                    raise ModelError(f"{path} has {size} bytes, but {name} ends at {end}; it is not complete")
                found[name] = tensor
        except ModelError:
            raise
        except (ValueError, KeyError, TypeError, AttributeError):
            raise ModelError(f"{path} is not a safetensors file") from None
    return found
