"""Which ops have a faster version on this device: on a GPU with Triton, those of `raysgl.kernels.triton`."""

from __future__ import annotations

import importlib.util
from functools import cache
from types import ModuleType

import torch


@cache
def triton_kernels(device: torch.device, dtype: torch.dtype) -> ModuleType | None:
    """The module with `rms_norm`, `silu_mul`, `rotate_and_write` and others of `triton.ops`, or None: use torch's."""
    if device.type != "cuda" or dtype not in (torch.bfloat16, torch.float16) or importlib.util.find_spec("triton") is None:
        return None
    if torch.cuda.get_device_capability(device) < (8, 0):  # no bfloat16, no asynchronous copies
        return None
    from raysgl.kernels.triton import ops

    return ops
