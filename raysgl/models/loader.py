"""From a checkpoint to a model that is ready to run."""

from __future__ import annotations

import logging

import torch
from torch import nn

from raysgl.config import EngineConfig
from raysgl.distributed import TPGroup
from raysgl.models import weights
from raysgl.models.checkpoint import Checkpoint, PeerLost
from raysgl.models.hf_config import HFConfig, ModelError
from raysgl.models.layers import Build
from raysgl.models.registry import model_class
from raysgl.models.weights import Progress

log = logging.getLogger(__name__)

DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float64": torch.float64,
}


def choose_dtype(setting: str, config: HFConfig, device: torch.device) -> torch.dtype:
    """What EngineConfig.dtype means: `auto` is the checkpoint's on cuda and float32 on cpu."""
    if setting != "auto":
        return DTYPES[setting]
    if device.type == "cpu":
        return torch.float32
    return DTYPES.get(config.dtype, torch.bfloat16)


def load_model(
    engine_config: EngineConfig,
    checkpoint: Checkpoint,
    tp: TPGroup,
    device: torch.device | str,
    dtype: torch.dtype,
    progress: Progress | None = None,
) -> nn.Module:
    """This rank's part of the model, on the device. `model.config` is its `HFConfig`, `model.kv_scales` see `weights.kv_scales`.

    `model.forward(batch, attention)` gives hidden_TD (after `attention.plan(batch)`), `model.logits(hidden_LD)` logits_LV.
    Raises `ModelError` for checkpoints that do not fit their config, and for a tp size that the model cannot be split over.
    """
    config = checkpoint.config()
    config.check_tp(tp.size)
    build = Build(tp, dtype, torch.device(device))
    context_length = engine_config.context_length or config.max_position_embeddings
    model = model_class(config.architecture)(config, build, context_length)
    model.kv_scales = {}
    if checkpoint.peer is not None:
        try:
            checkpoint.peer.fill(model, progress)
            return model.eval()
        except PeerLost as problem:
            log.warning("rank %d: %s; its weights come from the disk instead", tp.rank, problem)
            checkpoint = checkpoint.peer.otherwise()
    if checkpoint.weights == "dummy" and engine_config.load_format != "dummy":
        raise ModelError("the checkpoint was resolved without its weights")
    fill(model, checkpoint, engine_config.random_seed, progress)
    return model.eval()


def fill(model: nn.Module, checkpoint: Checkpoint, seed: int, progress: Progress | None = None) -> None:
    """All parameters, in place, and `kv_scales`. Raises `ModelError` and OSError; before it has begun, where `check` does. seed: of
    random weights."""
    source = _source(model, checkpoint)
    if source is None:
        weights.fill_random(model, seed, progress)
        return
    weights.load(model, source, progress)
    if hasattr(model, "kv_scales"):
        model.kv_scales = weights.kv_scales(source) if checkpoint.weights == "safetensors" else {}


def check(model: nn.Module, checkpoint: Checkpoint) -> None:
    """Raises `ModelError` for a checkpoint whose tensors are not this model's."""
    if (source := _source(model, checkpoint)) is not None:
        weights.check(model, source)


def _source(model: nn.Module, checkpoint: Checkpoint) -> weights.TensorSource | None:
    """None: there are no files, weights are made at random."""
    source: weights.TensorSource
    if checkpoint.weights == "dummy":
        return None
    if checkpoint.weights == "peer":
        raise ModelError("the weights came from a live replica, and there are no files of them")
    if checkpoint.weights == "gguf":
        source = weights.GGUFSource(checkpoint.files[0], checkpoint.folder)
    else:
        source = weights.SafetensorsSource(checkpoint.files)
    return model.named(source) if hasattr(model, "named") else source
