"""The converted side of a GGUF file: config, tokenizer, chat template and tensor index, made once and kept. No torch."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from raysgl.models.hf_config import ModelError

CONVERTER_VERSION = 1
"""Part of the folder's name: raise it when what is written changes."""

REFUSED = 3
"""Exit code of the converter for a file that it understands and does not support; its stderr is a sentence for the user."""


def cache_dir() -> Path:
    """RAYSGL_CACHE_DIR, or ~/.cache/raysgl."""
    return Path(os.environ.get("RAYSGL_CACHE_DIR") or Path.home() / ".cache" / "raysgl")


def converted_folder(gguf: Path, progress: Callable[[float, str], None] | None = None) -> Path:
    """The folder with what this file says besides weights; made if it is not there.

    Two processes may convert at once: each writes a folder of its own, and the first to rename it wins. Raises `ModelError`.
    """
    stat = gguf.stat()
    key = f"{gguf}\n{stat.st_size}\n{stat.st_mtime_ns}\n{CONVERTER_VERSION}"
    folder = cache_dir() / "gguf" / f"{gguf.stem}-{hashlib.sha256(key.encode()).hexdigest()[:16]}"
    if folder.is_dir():
        return folder
    if progress:
        progress(0.0, f"reading the tokenizer of {gguf.name} (once)")
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        _convert(gguf, scratch)
        try:
            scratch.rename(folder)
        except OSError:
            if not folder.is_dir():  # not another process that was quicker
                raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return folder


def _convert(gguf: Path, folder: Path) -> None:
    """In a process of its own: reading some tokenizers imports transformers and torch, which the ingress must not."""
    command = [sys.executable, "-m", "raysgl.models.gguf_convert", str(gguf), str(folder)]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=environment)
    if done.returncode == REFUSED:
        raise ModelError(done.stderr.strip().splitlines()[-1])
    if done.returncode:
        raise ModelError(f"{gguf} could not be converted:\n{done.stderr.strip()[-2000:]}")
