"""Files of measurements, one for each kind of GPU: `<device name>.json` in a folder of tables."""

from __future__ import annotations

from pathlib import Path

import torch

SAME_CHIP = {"nvidia_h200.json": "nvidia_h100_80gb_hbm3.json"}
"""Where nothing was measured on the first, what was measured on the second counts: the same multiprocessors behind other memory."""


def file_name(device_name: str) -> str:
    """ "NVIDIA H100 80GB HBM3" -> nvidia_h100_80gb_hbm3.json"""
    return "_".join(device_name.lower().replace("/", " ").split()) + ".json"


def table_file(folder: Path, device: torch.device) -> Path | None:
    """What counts on this GPU; None: nothing was measured that does."""
    name = file_name(torch.cuda.get_device_name(device))
    return next((path for path in (folder / name, folder / SAME_CHIP.get(name, name)) if path.is_file()), None)
