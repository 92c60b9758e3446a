"""From files to a device without a copy of the model in between: threads read chunks ahead, the caller's thread places them.

On a GPU chunks go through a few pinned buffers, with asynchronous copies on a stream of their own, so that disk and PCIe work at the
same time. On a CPU they are read right into the parameters, or converted on the way. Host memory that this takes is bounded by
a few chunks for each thread, whatever the size of the model.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

CHUNK_BYTES = 4 << 20
"""What is read at a time: enough for a disk's and PCIe's full speed. On 2 cores chunks of 16 MiB took twice as long to convert."""
READERS = 8
"""Threads at most: one of them copies 3 to 6 GB/s out of the page cache, and an NVMe disk wants several requests at a time."""
AHEAD = 2
"""Chunks for each of them that are being read or have been read."""
COPIES = 4
"""Chunks that are on their way to a GPU besides."""


@dataclass(frozen=True)
class Chunk:
    """A part of a parameter (`target`), and what the checkpoint has for it: `read(into_B)` fills bytes with its elements, which are
    of `dtype`. It is called in any thread, and must not compute in parallel (`raysgl.engine.background` says why)."""

    target: torch.Tensor
    dtype: torch.dtype
    read: Callable[[np.ndarray], None]

    @property
    def num_bytes(self) -> int:
        return self.target.numel() * self.dtype.itemsize


class _Staging(Protocol):
    """Where chunks are read to. take: memory for a chunk. read: into it, in any thread. place: what was read goes to the target.
    finish: all is there."""

    def take(self, chunk: Chunk) -> np.ndarray: ...

    def read(self, chunk: Chunk, into_B: np.ndarray) -> None: ...

    def place(self, chunk: Chunk, read_B: np.ndarray) -> None: ...

    def finish(self) -> None: ...


def fill(chunks: Sequence[Chunk], device: torch.device, placed: Callable[[Chunk], None]) -> None:
    """Read all chunks into their targets, in order; `placed` is called after each. Raises what reading raises."""
    threads = min(READERS, os.cpu_count() or 1)
    staging: _Staging = _Pinned(chunks, device) if device.type == "cuda" else _InPlace(chunks)
    under_way: deque = deque()

    def place_oldest() -> None:
        chunk, read_B, done = under_way.popleft()
        done.result()
        staging.place(chunk, read_B)
        placed(chunk)

    with ThreadPoolExecutor(threads, "weights") as readers:
        for chunk in chunks:
            if len(under_way) == AHEAD * threads:
                place_oldest()
            into_B = staging.take(chunk)
            under_way.append((chunk, into_B, readers.submit(staging.read, chunk, into_B)))
        while under_way:
            place_oldest()
    staging.finish()


class _InPlace:
    """On a CPU: the target's own memory where nothing is to be converted, else a buffer that is used again (new memory costs more than
    reading into it)."""

    def __init__(self, chunks: Sequence[Chunk]):
        self._size = max((chunk.num_bytes for chunk in chunks), default=0)
        self._free: list[np.ndarray] = []

    def take(self, chunk: Chunk) -> np.ndarray:
        if _same(chunk):
            return bytes_of(chunk.target)
        return (self._free.pop() if self._free else np.empty(self._size, np.uint8))[: chunk.num_bytes]

    def read(self, chunk: Chunk, into_B: np.ndarray) -> None:
        chunk.read(into_B)
        if _widens(chunk):  # the usual case has no reason to wait for the caller's thread
            target = bytes_of(chunk.target).view(np.uint32)
            np.left_shift(into_B.view(np.uint16), 16, out=target, dtype=np.uint32)

    def place(self, chunk: Chunk, read_B: np.ndarray) -> None:
        if _same(chunk):
            return
        if not _widens(chunk):
            chunk.target.copy_(_elements(torch.from_numpy(read_B), chunk))
        self._free.append(read_B.base)

    def finish(self) -> None:
        pass


def _same(chunk: Chunk) -> bool:
    return chunk.dtype == chunk.target.dtype and chunk.target.is_contiguous()


def _widens(chunk: Chunk) -> bool:
    """Whether float32 is made of bfloat16: its upper half."""
    return (chunk.dtype, chunk.target.dtype) == (torch.bfloat16, torch.float32) and chunk.target.is_contiguous()


class _Pinned:
    """On a GPU: pinned buffers that are used again when their copy is over."""

    def __init__(self, chunks: Sequence[Chunk], device: torch.device):
        size = max((chunk.num_bytes for chunk in chunks), default=0)
        count = min(AHEAD * READERS + COPIES, len(chunks))
        self._free = [torch.empty(size, dtype=torch.uint8, pin_memory=True) for _ in range(count)]
        self._reading: dict[int, torch.Tensor] = {}
        self._copying: deque[tuple[torch.cuda.Event, torch.Tensor]] = deque()
        self._device = device
        self._stream = torch.cuda.Stream(device)
        self._stream.wait_stream(torch.cuda.current_stream(device))  # memory of the targets may have had other uses there

    def take(self, chunk: Chunk) -> np.ndarray:
        if not self._free:
            copied, buffer = self._copying.popleft()
            copied.synchronize()
            self._free.append(buffer)
        buffer = self._free.pop()
        into_B = buffer.numpy()[: chunk.num_bytes]
        self._reading[into_B.ctypes.data] = buffer
        return into_B

    def read(self, chunk: Chunk, into_B: np.ndarray) -> None:
        chunk.read(into_B)

    def place(self, chunk: Chunk, read_B: np.ndarray) -> None:
        buffer = self._reading.pop(read_B.ctypes.data)
        source = _elements(buffer[: chunk.num_bytes], chunk)
        with torch.cuda.stream(self._stream):
            if not _same(chunk):
                source = source.to(self._device, non_blocking=True)  # `copy_` alone would convert on the host
            chunk.target.copy_(source, non_blocking=True)
            copied = torch.cuda.Event()
            copied.record()
        self._copying.append((copied, buffer))

    def finish(self) -> None:
        torch.cuda.current_stream(self._device).wait_stream(self._stream)
        self._stream.synchronize()


def bytes_of(tensor: torch.Tensor) -> np.ndarray:
    """A contiguous CPU tensor's own memory."""
    return tensor.detach().reshape(-1).view(torch.uint8).numpy()


def _elements(read_B: torch.Tensor, chunk: Chunk) -> torch.Tensor:
    return read_B.view(chunk.dtype).view(chunk.target.shape)
