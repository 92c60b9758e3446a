"""Which ops have a faster version on this device: on a GPU with Triton, those of `raysgl.kernels.triton`."""

from __future__ import annotations

import importlib.util
from functools import cache
from types import ModuleType

import torch


@cache
def _has_triton(device: torch.device) -> bool:
    if device.type != "cuda" or importlib.util.find_spec("triton") is None:
        return False
    return torch.cuda.get_device_capability(device) >= (8, 0)  # before: no bfloat16, no asynchronous copies


def triton_kernels(device: torch.device, dtype: torch.dtype) -> ModuleType | None:
    """The module with `rms_norm`, `silu_mul`, `rotate_and_write` and others of `triton.ops`, or None: use torch's."""
    if dtype not in (torch.bfloat16, torch.float16) or not _has_triton(device):
        return None
    from raysgl.kernels.triton import ops

    return ops


def triton_sampling(device: torch.device) -> ModuleType | None:
    """The module with `argmax` and `draw`, for logits of any type, or None: use torch's."""
    if not _has_triton(device):
        return None
    from raysgl.kernels.triton import ops

    return ops
