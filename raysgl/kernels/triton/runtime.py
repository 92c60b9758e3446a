"""What all kernels of this folder need to know of the machine they run on.

Programmatic dependent launch (PDL; CUDA programming guide, "Programmatic Dependent Launch and Synchronization"): a kernel may start
while the one before it still runs, and waits at `griddepcontrol.wait` for its results. In a chain of short kernels that hides the launch
and the first loads. Every kernel here waits before it touches anything that another kernel wrote; only weights are loaded earlier.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
import triton

INTERPRETED = bool(triton.knobs.runtime.interpret)
"""Whether kernels run in Triton's interpreter (TRITON_INTERPRET=1 when triton was imported), which takes CPU tensors."""

if INTERPRETED:
    from raysgl.kernels.triton import interpreter

    interpreter.mend()

_pdl = False


def enable_pdl(enabled: bool) -> None:
    """Launch all kernels of this folder with PDL from now on. Needs compute capability 9.0 or later."""
    global _pdl
    if enabled and (INTERPRETED or torch.cuda.get_device_capability()[0] < 9):
        raise RuntimeError("programmatic dependent launch needs a GPU of compute capability 9.0 or later")
    _pdl = enabled


@contextmanager
def dependent_launch() -> Iterator[None]:
    """PDL for what is launched, or captured, inside."""
    before = _pdl
    enable_pdl(True)
    try:
        yield
    finally:
        enable_pdl(before)


def launch_options() -> dict[str, Any]:
    """Keyword arguments that every launch takes: the kernel's PDL constant, and the launch attribute that goes with it."""
    return {"PDL": True, "launch_pdl": True} if _pdl else {"PDL": False}


@cache
def num_sms(device: torch.device) -> int:
    """Multiprocessors of the GPU; 2 under the interpreter, so that small tests split their work too."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 2


@cache
def roomy(device: torch.device) -> bool:
    """Whether a program has more than 100 KiB of shared memory (A100, H100; not the GPUs for desktops)."""
    if device.type != "cuda":
        return True
    index = torch.cuda.current_device() if device.index is None else device.index
    return triton.runtime.driver.active.utils.get_device_properties(index)["max_shared_mem"] > 100 << 10


_workspaces: dict[tuple[str, torch.device, torch.dtype], list[torch.Tensor]] = {}


def workspace(name: str, numel: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Zeroed memory of at least `numel` elements that stays where it is: captured graphs point to it.

    All calls with one name share it, so its users must run one after another (one stream) and leave counters at zero.
    """
    made = _workspaces.setdefault((name, device, dtype), [])
    if not made or made[-1].numel() < numel:
        made.append(torch.zeros(triton.next_power_of_2(numel), dtype=dtype, device=device))
    return made[-1]
