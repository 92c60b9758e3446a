"""Small arrays between host and device, without waiting for the device."""

from __future__ import annotations

import numpy as np
import torch


def upload(array: np.ndarray, device: torch.device) -> torch.Tensor:
    """The array on the device. On cpu they share memory, so the array must not be written any more."""
    if device.type == "cpu":
        return torch.from_numpy(array)
    # torch keeps a pinned block until the copies that read it have run, so this needs no buffers of our own.
    pinned = torch.empty(array.shape, dtype=torch.from_numpy(array).dtype, pin_memory=True)
    pinned.numpy()[...] = array
    return pinned.to(device, non_blocking=True)


def download(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor on the host; valid once the current stream has got here."""
    if tensor.device.type == "cpu":
        return tensor
    return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True).copy_(tensor, non_blocking=True)
