"""Where a runner launches: in a stream of its own on cuda, with so many threads on cpu."""

from __future__ import annotations

import threading
from contextlib import AbstractContextManager, nullcontext

import torch


class Launching:
    """A runner's base. `_stream`: on cuda. `_threads`: of torch on cpu; 0: as they are."""

    _stream: torch.cuda.Stream | None = None
    _threads = 0
    _thread = -1

    def _in_stream(self) -> AbstractContextManager:
        return nullcontext() if self._stream is None else torch.cuda.stream(self._stream)

    def _use_threads(self) -> None:
        """OpenMP keeps its thread count per thread, so whichever thread launches must set it."""
        if self._threads and self._thread != threading.get_ident():
            self._thread = threading.get_ident()
            torch.set_num_threads(self._threads)

    # What `raysgl.engine.occupation` gives back and takes again; a runner without it has nothing to do.

    def drop_cache(self) -> None: ...

    def make_cache(self) -> None: ...

    def drop_graphs(self) -> None: ...

    def make_graphs(self) -> None: ...

    def weights_changed(self) -> None: ...
