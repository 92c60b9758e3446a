"""The memory of an idle shard that can be given back and taken again: weights, KV cache, CUDA graphs.

Weights wait in host memory (pinned where there is a GPU, so that they come back at PCIe's speed; torch keeps that memory for the next
time). The KV cache comes back empty. CUDA graphs hold the addresses of both, so they go with either, and are captured anew when
everything is there again.
"""

from __future__ import annotations

import gc
from collections.abc import Iterable
from typing import Protocol

import torch
from torch import nn

from raysgl.distributed import TPGroup
from raysgl.models import ModelError
from raysgl.models.lending import Lender


class Occupant(Protocol):
    """A runner. Each `make` is the inverse of its `drop`, and raises `ModelError` where memory is short; what is there already stays."""

    device: torch.device

    @property
    def model(self) -> nn.Module: ...

    def drop_cache(self) -> None: ...

    def make_cache(self) -> None: ...

    def drop_graphs(self) -> None: ...

    def make_graphs(self) -> None: ...

    def weights_changed(self) -> None:
        """There are others in the same place."""


class Occupation:
    """One shard's. All ranks must be told the same in the same order: they agree, and either all do it or none.

    In the thread of the runner's steps. lender: lends nothing while the weights are away.
    """

    def __init__(self, runner: Occupant, tp: TPGroup, lender: Lender | None = None):
        self._runner, self._tp, self._lender = runner, tp, lender
        self.released: set[str] = set()
        self._weights: dict[nn.Parameter, torch.Tensor] = {}
        self._lent = False

    def release(self, tags: Iterable[str]) -> tuple[bool, str]:
        """Whether all ranks have, and why not."""
        tags = {*tags} - self.released
        why, kept = "", {}
        settle(self._runner.device)
        if "weights" in tags:
            try:
                kept = {parameter: _on_host(parameter) for parameter in self._runner.model.parameters()}
            except (RuntimeError, MemoryError) as error:  # torch has no type of its own for main memory
                why = f"there is no room for the weights in host memory ({error})"
        if not self._agree(why):
            return False, why or OTHER
        self._runner.drop_graphs()
        if "weights" in tags:
            if self._lender is not None:
                self._lent = self._lender.able
                self._lender.pause()
            self._weights = kept
            for parameter in kept:
                parameter.data = torch.empty(0, dtype=parameter.dtype, device=parameter.device)
        if "kv_cache" in tags:
            self._runner.drop_cache()
        self.released |= tags
        self.free()
        return True, ""

    def resume(self, tags: Iterable[str]) -> tuple[bool, str]:
        """The same. Where memory is short everything stays released."""
        tags = {*tags} & self.released
        why = ""
        try:
            if "weights" in tags:
                self._bring_back_weights()
            if "kv_cache" in tags:
                self._runner.make_cache()
        except ModelError as error:
            why = str(error)
        settle(self._runner.device)
        done = self._agree(why)
        if done and not self.released - tags:
            try:
                self._runner.make_graphs()
            except ModelError as error:
                why = str(error)
            done = self._agree(why)
        if not done:
            self._undo(tags)
            return False, why or OTHER
        self.released -= tags
        if "weights" in tags:
            self._weights = {}
            if self._lender is not None and self._lent:
                self._lender.go_on()
        return True, ""

    def _bring_back_weights(self) -> None:
        device = self._runner.device
        try:
            for parameter, kept in self._weights.items():
                parameter.data = kept.to(device, non_blocking=True)
        except torch.OutOfMemoryError:
            free, total = torch.cuda.mem_get_info(device)
            raise ModelError(f"the weights do not fit: {free / 2**30:.2f} of {total / 2**30:.2f} GiB are free") from None

    def _undo(self, tags: set[str]) -> None:
        self._runner.drop_graphs()
        if "weights" in tags:
            for parameter in self._weights:
                parameter.data = torch.empty(0, dtype=parameter.dtype, device=parameter.device)
        if "kv_cache" in tags:
            self._runner.drop_cache()
        self.free()

    def _agree(self, why: str) -> bool:
        return self._tp.agree(not why, self._runner.device)

    def free(self) -> None:
        """What nobody holds goes back to the device, cycles of what was frozen after the start too."""
        gc.unfreeze()
        gc.collect()
        gc.freeze()
        settle(self._runner.device)
        if self._runner.device.type == "cuda":
            torch.cuda.empty_cache()


OTHER = "another shard could not; its log says why"


def settle(device: torch.device) -> None:
    """All that was launched has run. Steps have a stream of their own, and other ranks than 0 may be behind."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _on_host(parameter: nn.Parameter) -> torch.Tensor:
    """On a CPU it is there already."""
    if parameter.device.type == "cpu":
        return parameter.data
    return torch.empty(parameter.shape, dtype=parameter.dtype, pin_memory=True).copy_(parameter.data)
