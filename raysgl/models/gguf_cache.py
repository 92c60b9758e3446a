"""The converted side of a GGUF file: config, tokenizer, chat template and tensor index, made once and kept. No torch."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from raysgl.models.folder_cache import cache_dir, made_once
from raysgl.models.hf_config import ModelError

CONVERTER_VERSION = 1
"""Part of the folder's name: raise it when what is written changes."""

REFUSED = 3
"""Exit code of the converter for a file that it understands and does not support; its stderr is a sentence for the user."""


def converted_folder(gguf: Path, progress: Callable[[float, str], None] | None = None) -> Path:
    """The folder with what this file says besides weights; made if it is not there. Raises `ModelError`."""
    stat = gguf.stat()
    key = f"{gguf}\n{stat.st_size}\n{stat.st_mtime_ns}\n{CONVERTER_VERSION}"
    folder = cache_dir() / "gguf" / f"{gguf.stem}-{hashlib.sha256(key.encode()).hexdigest()[:16]}"

    def convert(scratch: Path) -> None:
        if progress:
            progress(0.0, f"reading the tokenizer of {gguf.name} (once)")
        _convert(gguf, scratch)

    return made_once(folder, convert)


def _convert(gguf: Path, folder: Path) -> None:
    """In a process of its own: reading some tokenizers imports transformers and torch, which the ingress must not."""
    command = [sys.executable, "-m", "raysgl.models.gguf_convert", str(gguf), str(folder)]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=environment)
    if done.returncode == REFUSED:
        raise ModelError(done.stderr.strip().splitlines()[-1])
    if done.returncode:
        raise ModelError(f"{gguf} could not be converted:\n{done.stderr.strip()[-2000:]}")
