"""Folders that are made once and kept, for whichever process comes first."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path


def cache_dir() -> Path:
    """RAYSGL_CACHE_DIR, or ~/.cache/raysgl."""
    return Path(os.environ.get("RAYSGL_CACHE_DIR") or Path.home() / ".cache" / "raysgl")


def made_once(folder: Path, fill: Callable[[Path], None]) -> Path:
    """The folder, made if it is not there. Two processes may fill one of their own at once; the first to rename it wins."""
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        fill(scratch)
        try:
            scratch.rename(folder)
        except OSError:
            if not folder.is_dir():  # not another process that was quicker
                raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return folder
