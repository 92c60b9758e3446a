"""Weights from a live replica: a shard lends its parameters' bytes, chunk by chunk, to the same rank of a new one. No Ray.

What is lent is a copy; both sides must hold tensors of the same names, shapes and dtypes in the same order.
"""

from __future__ import annotations

import fnmatch
import hashlib
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path

import msgspec
import numpy as np
import torch
from torch import nn

from raysgl.config import EngineConfig
from raysgl.models import weights
from raysgl.models.checkpoint import SMALL_FILES, Checkpoint, PeerLost
from raysgl.models.folder_cache import cache_dir, made_once
from raysgl.models.hf_config import ModelError
from raysgl.models.streaming import Chunk, bytes_of
from raysgl.models.weights import Progress

CHUNK_BYTES = 16 << 20
WHAT = "loading weights from a replica"
SAMPLES, SAMPLE_BYTES = 16, 4096
"""Of each weight file, for `identity`: fine-tuned weights have the same shapes, and a copy of a file another date."""

Fetch = Callable[[int, int, int], np.ndarray]
"""(tensor, first byte, bytes) -> them, as uint8. Blocks; raises `PeerLost`."""


class Tensor(msgspec.Struct, array_like=True, frozen=True):
    name: str
    dtype: str
    shape: tuple[int, ...]


class Offer(msgspec.Struct, array_like=True):
    """What a shard lends. source: model_path and revision that it was told to load. identity: of the checkpoint that it has loaded.
    kv_scales: (layer, 0 or 1, scale)."""

    source: str
    identity: str
    rank: int
    tp_size: int
    tensors: list[Tensor]
    kv_scales: list[tuple[int, int, float]]


class Lender:
    """The lending side. `read` may be called from any thread, while the model runs.

    small_files: config, tokenizer and templates, for those who have no files of the model at all. Rank 0 has them for all ranks, in
    memory: its own disk may have lost them too.
    """

    def __init__(self, model: nn.Module, source: str, identity: str, folder: Path, rank: int, tp_size: int):
        self._model, self._lock = model, threading.Lock()
        tensors = _tensors(model)
        self.small_files = _small_files(folder) if rank == 0 else {}
        scales = [(layer, kind, scale) for (layer, kind), scale in model.kv_scales.items()]
        self.offer = Offer(source, identity, rank, tp_size, _table(tensors), scales)
        on_cuda = any(tensor.device.type == "cuda" for tensor in tensors.values())
        self._stream = torch.cuda.Stream() if on_cuda else None
        self._list: list[torch.Tensor] | None = list(tensors.values())

    @property
    def able(self) -> bool:
        return self._list is not None

    def pause(self) -> None:
        """Lend nothing: the parameters' memory goes, or changes. What is being read is read to its end before."""
        with self._lock:
            self._list = None

    def go_on(self) -> None:
        """The parameters are as they were."""
        self._list = list(_tensors(self._model).values())

    def become(self, config: EngineConfig, checkpoint: Checkpoint) -> None:
        """The parameters are another checkpoint's now. It lends on, unless the files have changed or gone since."""
        try:
            name, small = identity(checkpoint), _small_files(checkpoint.folder)
        except OSError:
            return
        scales = [(layer, kind, scale) for (layer, kind), scale in self._model.kv_scales.items()]
        self.offer = msgspec.structs.replace(self.offer, source=config.source, identity=name, kv_scales=scales)
        self.small_files = small if self.offer.rank == 0 else {}
        self.go_on()

    def is_of(self, checkpoint: Checkpoint) -> bool:
        """Whether these files are what is lent."""
        try:
            return identity(checkpoint) == self.offer.identity
        except OSError:
            return False

    def read(self, index: int, start: int, length: int, name: str | None = None) -> np.ndarray:
        """On a CPU the parameter's own memory. On a GPU a copy, by the copy engine, which steps do not need. Raises `PeerLost` while
        it is paused, and where it lends no more what it offered under the identity `name`."""
        with self._lock:
            if name not in (None, self.offer.identity):
                raise PeerLost("it has other weights now")
            return self._read(index, start, length)

    def _read(self, index: int, start: int, length: int) -> np.ndarray:
        if self._list is None:
            raise PeerLost("its weights are not there now")
        tensor = self._list[index]
        if self._stream is None:
            return bytes_of(tensor)[start : start + length]
        part = tensor.view(-1).view(torch.uint8)[start : start + length]
        with torch.cuda.stream(self._stream):
            host = torch.empty(len(part), dtype=torch.uint8, pin_memory=True)
            host.copy_(part, non_blocking=True)
        self._stream.synchronize()
        return host.numpy()


class Loan:
    """The borrowing side, as `Checkpoint.peer`. lender: for the log. otherwise: finds the checkpoint on the disk."""

    def __init__(self, offer: Offer, lender: str, fetch: Fetch, otherwise: Callable[[], Checkpoint]):
        self._offer, self.lender, self._fetch, self._otherwise = offer, lender, fetch, otherwise
        self.identity = offer.identity

    def fill(self, model: nn.Module, progress: Progress | None) -> None:
        """Raises `PeerLost` when the lender goes away, or holds something else; the model is then half filled."""
        tensors = _tensors(model)
        if _table(tensors) != self._offer.tensors:
            raise PeerLost(f"{self.lender} has other parameters")
        chunks = []
        for index, tensor in enumerate(tensors.values()):
            flat, step = tensor.view(-1), max(1, CHUNK_BYTES // tensor.dtype.itemsize)
            for first in range(0, len(flat), step):
                target = flat[first : first + step]
                chunks.append(Chunk(target, tensor.dtype, partial(self._read, index, first * tensor.dtype.itemsize)))
        weights.fill(model, chunks, WHAT, progress)
        model.kv_scales = {(layer, kind): scale for layer, kind, scale in self._offer.kv_scales}

    def otherwise(self) -> Checkpoint:
        found = self._otherwise()
        self.identity = identity(found)
        return found

    def _read(self, index: int, start: int, into_B: np.ndarray) -> None:
        part = self._fetch(index, start, len(into_B))
        if len(part) != len(into_B):
            raise PeerLost(f"{self.lender} sent {len(part)} bytes instead of {len(into_B)}")
        np.copyto(into_B, part)


def identity(checkpoint: Checkpoint) -> str:
    """The same for equal checkpoints wherever they lie; by the config and samples of each weight file. Raises OSError."""
    digest = hashlib.sha256((checkpoint.folder / "config.json").read_bytes())
    for path in checkpoint.files:
        size = path.stat().st_size
        digest.update(f"{path.name}\n{size}\n".encode())
        with path.open("rb") as file:
            for sample in range(SAMPLES):
                file.seek(max(0, size - SAMPLE_BYTES) * sample // (SAMPLES - 1))
                digest.update(file.read(SAMPLE_BYTES))
    return digest.hexdigest()


def lender_of(model: nn.Module, config: EngineConfig, checkpoint: Checkpoint, rank: int) -> Lender | None:
    """None where the files have changed or gone since they were loaded: what is lent could not be told apart."""
    peer = checkpoint.peer
    try:
        name = peer.identity if isinstance(peer, Loan) else identity(checkpoint)
        return Lender(model, config.source, name, checkpoint.folder, rank, config.tp_size)
    except OSError:
        return None


def _small_files(folder: Path) -> dict[str, bytes]:
    return {
        path.name: path.read_bytes()
        for path in sorted(folder.iterdir())
        if path.is_file() and any(fnmatch.fnmatch(path.name, pattern) for pattern in SMALL_FILES)
    }


def keep_small_files(files: dict[str, bytes]) -> Path:
    """A folder with these files, made once. Raises `ModelError` for names that are none."""
    digest = hashlib.sha256()
    for name, content in sorted(files.items()):
        if Path(name).name != name:
            raise ModelError(f"a replica sent a file {name!r}")
        digest.update(f"{name}\n{len(content)}\n".encode() + content)

    def write(scratch: Path) -> None:
        for name, content in files.items():
            (scratch / name).write_bytes(content)

    return made_once(cache_dir() / "peer" / digest.hexdigest()[:32], write)


def _tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """What a checkpoint fills. Buffers are computed."""
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


def _table(tensors: dict[str, torch.Tensor]) -> list[Tensor]:
    return [Tensor(name, str(tensor.dtype), tuple(tensor.shape)) for name, tensor in tensors.items()]
