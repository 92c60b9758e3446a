"""A model that makes numbers of texts: a body (encoder or decoder), pooling, and a classifier's head where it has one.

How it is done is in a `PoolingSpec`; this is where torch does it. Legend: `raysgl.kernels.batch`; S texts.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import torch
from torch import nn

from raysgl.config import EngineConfig
from raysgl.distributed import single
from raysgl.kernels.attention.whole import WholeAttention, WholeBatch
from raysgl.models import loader, weights
from raysgl.models.bert import Linear
from raysgl.models.checkpoint import Checkpoint
from raysgl.models.encoder_config import EncoderConfig
from raysgl.models.hf_config import HFConfig
from raysgl.models.layers import Build, Piece, checkpoint_table
from raysgl.models.pooling import PoolingSpec
from raysgl.models.registry import model_class
from raysgl.models.streaming import Chunk
from raysgl.models.weights import Progress

LEFT_OUT = ("lm_head.", "cls.", "pooler.", "position_ids", "rotary_emb.inv_freq", "embeddings.token_type_ids")
"""Parts of checkpoint names that only other uses of a model need: output layers over the vocabulary, BERT's pooler where a vector is
made of the hidden states themselves, and tables that are not weights."""


class PooledModel(nn.Module):
    """`forward` gives results_SR as float32: vectors, or a classifier's numbers."""

    def __init__(self, config: HFConfig | EncoderConfig, spec: PoolingSpec, build: Build, context_length: int):
        super().__init__()
        self.config, self.spec = config, spec
        encoder = isinstance(config, EncoderConfig)
        # A decoder's output layer is not made where it is tied.
        shape = config if encoder else dataclasses.replace(config, tie_word_embeddings=True)
        model = model_class(config.architecture)(shape, build, context_length)
        self.body = model if encoder else model.model
        self.attention = WholeAttention(causal=not encoder)
        self.dense = self.out = None
        if spec.task == "classify":
            # BERT's and RoBERTa's heads are the same two layers under other names.
            self.dense = Linear(build, config.hidden_size, config.hidden_size) if encoder else None
            self.out = Linear(build, config.hidden_size, spec.size, bias=encoder)

    def named(self, source: weights.TensorSource) -> weights.TensorSource:
        """With its own names for a checkpoint's tensors."""
        return _Named(source, self)

    @torch.inference_mode()
    def forward(self, batch: WholeBatch) -> torch.Tensor:
        self.attention.plan(batch)
        pooled_SD = self.pooled(self.body(batch, self.attention), batch.lengths)
        if self.out is None:
            pooled_SD = pooled_SD.float()
            return nn.functional.normalize(pooled_SD) if self.spec.normalize else pooled_SD
        if self.dense is not None:
            pooled_SD = torch.tanh(self.dense(pooled_SD))
        return self.out(pooled_SD).float()

    def pooled(self, hidden_TD: torch.Tensor, lengths: list[int]) -> torch.Tensor:
        lengths_S = torch.tensor(lengths, device=hidden_TD.device)
        if self.spec.pooling == "mean":
            return torch.segment_reduce(hidden_TD.float(), "mean", lengths=lengths_S).to(hidden_TD.dtype)
        ends_S = lengths_S.cumsum(0)
        return hidden_TD.index_select(0, ends_S - lengths_S if self.spec.pooling == "cls" else ends_S - 1)


def load_pooled(
    engine: EngineConfig,
    checkpoint: Checkpoint,
    spec: PoolingSpec,
    device: torch.device | str,
    dtype: torch.dtype,
    progress: Progress | None = None,
) -> PooledModel:
    """The whole model, on the device. Raises `ModelError` for checkpoints that do not fit their config."""
    build = Build(single(), dtype, torch.device(device))
    model = PooledModel(checkpoint.config(), spec, build, engine.context_length or spec.max_length)
    loader.fill(model, checkpoint, engine.random_seed, progress)
    return model.eval()


class _Named:
    """A checkpoint's tensors by the model's names: the same weights are stored with and without a prefix (bert., model.), depending
    on which class of transformers saved them."""

    def __init__(self, source: weights.TensorSource, model: PooledModel):
        self._source = source
        table = checkpoint_table(model)
        heads = _heads(model)
        self._own: dict[str, str] = {}
        for name in source.shapes:
            plain = heads.get(name) or _plain(name)
            for ours in (plain, f"body.{plain}", f"body.{plain.partition('.')[2]}"):
                if ours in table:
                    self._own[ours] = name
                    break
            else:
                if not any(part in name for part in LEFT_OUT):
                    self._own[name] = name
        self.shapes = {ours: source.shapes[name] for ours, name in self._own.items()}

    def chunks(self, piece: Piece) -> Iterator[Chunk]:
        return self._source.chunks(dataclasses.replace(piece, name=self._own[piece.name]))

    def number(self, name: str) -> float:
        return self._source.number(self._own[name])


def _plain(name: str) -> str:
    """The oldest BERT checkpoints have the norms' parameters as gamma and beta."""
    return name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")


def _heads(model: PooledModel) -> dict[str, str]:
    """Where a classifier's head is in a checkpoint -> here."""
    if model.out is None:
        return {}
    if model.dense is None:
        return {"score.weight": "out.weight"}
    dense, out = (
        ("classifier.dense", "classifier.out_proj") if "Roberta" in model.spec.head else ("bert.pooler.dense", "classifier")
    )
    return {f"{old}.{kind}": f"{new}.{kind}" for old, new in ((dense, "dense"), (out, "out")) for kind in ("weight", "bias")}
