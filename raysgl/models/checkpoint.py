"""Where a model's files are. No torch: the ingress calls it for the tokenizer, the shards for everything."""

from __future__ import annotations

import importlib.util
import json
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from raysgl.models import hf_config
from raysgl.models.encoder_config import EncoderConfig
from raysgl.models.gguf_cache import converted_folder
from raysgl.models.hf_config import HFConfig, ModelError

Progress = Callable[[float, str], None]
"""Called with how much is done (0 to 1) and with what, in a few words."""

PACKAGE_SCHEME = "package://"
HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
SMALL_FILES = ["*.json", "*.jinja", "*.model", "*.txt", "tokenizer*"]
WEIGHT_FILES = ["*.safetensors"]
INDEX_FILE = "model.safetensors.index.json"


class PeerLost(Exception):
    """A live replica that was to give its weights is gone, or holds something else."""


class Peer(Protocol):
    """A live replica with these weights (`raysgl.models.lending`)."""

    def fill(self, model: Any, progress: Progress | None) -> None:
        """All of a torch module's parameters. Raises `PeerLost`."""

    def otherwise(self) -> Checkpoint:
        """With what to go on after that. Raises `ModelError`."""


@dataclass(frozen=True)
class Checkpoint:
    """A model on this machine's disk.

    folder: holds config.json, the tokenizer's files, and where the model has them generation_config.json and a chat template.
    weights: how they are stored; "dummy": there are none to read; "peer": only a live replica has them.
    files: the files that hold them.
    peer: where they come from instead of the files.
    """

    folder: Path
    weights: Literal["safetensors", "gguf", "dummy", "peer"]
    files: tuple[Path, ...] = ()
    peer: Peer | None = None

    def config(self) -> HFConfig | EncoderConfig:
        """Raises `ModelError` if the model is of a kind that raysgl does not support."""
        return hf_config.read(self.folder)


def resolve(
    model_path: str,
    revision: str | None = None,
    load_format: str = "auto",
    weights: bool = True,
    progress: Progress | None = None,
    download: bool = True,
) -> Checkpoint:
    """Find a model, downloading it (hub ids, unless told not to) or converting its tokenizer (GGUF) the first time.

    `model_path`: a local folder, a .gguf file, package://<module>/<file or folder>, or a hub id (of `revision`).
    `load_format`: EngineConfig's. `weights=False` is for callers who only tokenise: a hub model's weights are not downloaded.
    Raises `ModelError`.
    """
    path = _local_path(model_path)
    if path is None:
        path = _download(model_path, revision, weights and load_format != "dummy", download)
    if path.is_dir():
        if load_format == "gguf":
            raise ModelError(f"load_format is gguf, but {model_path} is a folder; give the path of the .gguf file")
        if load_format == "dummy" or not weights:
            return Checkpoint(path, "dummy")
        return Checkpoint(path, "safetensors", safetensors_files(path))
    if path.suffix != ".gguf":
        raise ModelError(f"{model_path} is a file, but only .gguf files and folders can be served")
    if load_format == "safetensors":
        raise ModelError(f"load_format is safetensors, but {model_path} is a .gguf file")
    folder = converted_folder(path, progress)
    return Checkpoint(folder, "dummy") if load_format == "dummy" or not weights else Checkpoint(folder, "gguf", (path,))


def _local_path(model_path: str) -> Path | None:
    """The path that is meant, or None for a hub id."""
    if model_path.startswith(PACKAGE_SCHEME):
        return _package_path(model_path)
    path = Path(model_path).expanduser()
    if path.exists():
        return path.resolve()
    if model_path.startswith(("/", ".", "~")) or path.suffix == ".gguf" or not HUB_ID.fullmatch(model_path):
        raise ModelError(f"model_path {model_path!r} does not exist")
    return None


def _package_path(model_path: str) -> Path:
    """package://<module>/<rest> -> a path. The module is not imported: model packages drag in their own runtimes."""
    module, _, rest = model_path.removeprefix(PACKAGE_SCHEME).partition("/")
    top, *nested = module.split(".")
    spec = importlib.util.find_spec(top) if top else None
    if spec is None or not spec.submodule_search_locations:
        raise ModelError(f"model_path {model_path!r}: the Python package {top!r} is not installed here")
    for location in spec.submodule_search_locations:
        path = Path(location, *nested, rest)
        if path.exists():
            return path.resolve()
    raise ModelError(f"model_path {model_path!r}: the Python package {top!r} has no file {rest!r}")


def _download(model_id: str, revision: str | None, weights: bool, download: bool) -> Path:
    """The folder of a hub model in Hugging Face's own cache; `download` fetches what is missing."""
    from huggingface_hub import errors, snapshot_download

    patterns = SMALL_FILES + (WEIGHT_FILES if weights else [])
    try:
        return Path(snapshot_download(model_id, revision=revision, allow_patterns=patterns, local_files_only=not download))
    except errors.GatedRepoError:
        raise ModelError(f"{model_id} needs its licence accepted at huggingface.co/{model_id} and HF_TOKEN set") from None
    except errors.RevisionNotFoundError:
        raise ModelError(f"{model_id} has no revision {revision!r} on the Hugging Face hub") from None
    except errors.RepositoryNotFoundError:
        raise ModelError(
            f"{model_id!r} is neither a path here nor a model on the Hugging Face hub (a private one needs HF_TOKEN)"
        ) from None
    except errors.LocalEntryNotFoundError:
        raise ModelError(
            f"{model_id!r} is neither a path here nor downloaded yet, and the Hugging Face hub cannot be reached"
        ) from None
    except Exception as error:  # whatever the hub's client and its transport raise: one sentence for the user
        raise ModelError(
            f"{model_id} could not be downloaded from the Hugging Face hub: {type(error).__name__}: {error}"
        ) from error


def safetensors_files(folder: Path) -> tuple[Path, ...]:
    """The files that hold a folder's weights. Raises `ModelError` where one is missing."""
    index = folder / INDEX_FILE
    if index.is_file():
        files = sorted({folder / name for name in json.loads(index.read_text())["weight_map"].values()})
    else:
        files = [folder / "model.safetensors"]
    missing = [path.name for path in files if not path.is_file()]
    if missing:
        others = ", ".join(
            sorted(name for name in os.listdir(folder) if name.endswith((".bin", ".pth", ".gguf", ".safetensors")))
        )
        hint = f" (it has {others}; raysgl reads safetensors and GGUF)" if others else ""
        raise ModelError(f"{folder} has no {', '.join(missing)}{hint}")
    return tuple(files)
