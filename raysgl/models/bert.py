"""BERT (Devlin et al. 2019), RoBERTa (Liu et al. 2019) and XLM-RoBERTa: encoders of whole texts.

Module names are the checkpoint's. Legend: `raysgl.kernels.batch`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn

from raysgl.kernels.attention import AttentionBackend, AttentionLayer
from raysgl.kernels.attention.whole import WholeBatch
from raysgl.models.encoder_config import EncoderConfig
from raysgl.models.layers import Build, ColumnLinear, Piece, RowLinear, Rows, VocabEmbedding, whole

ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "gelu": F.gelu,
    "gelu_new": partial(F.gelu, approximate="tanh"),
    "gelu_pytorch_tanh": partial(F.gelu, approximate="tanh"),
    "relu": F.relu,
    "silu": F.silu,
}
"""By config.json's name; `raysgl.models.encoder_config` has the same names."""


class LayerNorm(nn.Module):
    """With a bias, after an addition."""

    def __init__(self, build: Build, config: EncoderConfig):
        super().__init__()
        self.eps = config.layer_norm_eps
        self.weight = build.parameter(config.hidden_size)
        self.bias = build.parameter(config.hidden_size)

    def forward(self, x_TD: torch.Tensor) -> torch.Tensor:
        return F.layer_norm(x_TD, self.weight.shape, self.weight, self.bias, self.eps)

    def pieces(self, path: str) -> Iterator[Piece]:
        yield whole(f"{path}.weight", self.weight)
        yield whole(f"{path}.bias", self.bias)


class Linear(RowLinear):
    """Not split."""

    def __init__(self, build: Build, in_features: int, out_features: int, bias: bool = True):
        super().__init__(build, in_features, out_features, bias)


class Embeddings(nn.Module):
    def __init__(self, config: EncoderConfig, build: Build):
        super().__init__()
        size, self.first = config.hidden_size, config.first_position
        self.word_embeddings = VocabEmbedding(build, config.vocab_size, size)
        self.position_embeddings = VocabEmbedding(build, self.first + config.max_position_embeddings, size)
        self.token_type_embeddings = VocabEmbedding(build, config.type_vocab_size, size)
        self.LayerNorm = LayerNorm(build, config)
        self.types = config.type_vocab_size

    def forward(self, batch: WholeBatch) -> torch.Tensor:
        types_T = batch.types_T.clamp_max(self.types - 1)  # a model of one type does not tell two texts apart
        return self.LayerNorm(
            self.word_embeddings(batch.token_ids_T)
            + self.token_type_embeddings(types_T)
            + self.position_embeddings(batch.positions_T + self.first)
        )


class SelfAttention(nn.Module):
    def __init__(self, config: EncoderConfig, build: Build, index: int):
        super().__init__()
        self.heads, self.head_dim = config.num_heads, config.head_dim
        self.layer = AttentionLayer(index, config.head_dim**-0.5)
        parts = [Rows.split(name, config.hidden_size, build.tp) for name in ("query", "key", "value")]
        self.joined = ColumnLinear(build, config.hidden_size, parts, bias=True)

    def forward(self, x_TD: torch.Tensor, attention: AttentionBackend) -> torch.Tensor:
        qkv_TNH = self.joined(x_TD).view(-1, 3 * self.heads, self.head_dim)
        return attention.forward(*qkv_TNH.split(self.heads, dim=1), self.layer).reshape(x_TD.shape)


class Output(nn.Module):
    """A projection, added to what went in, normalised."""

    def __init__(self, config: EncoderConfig, build: Build, in_features: int):
        super().__init__()
        self.dense = Linear(build, in_features, config.hidden_size)
        self.LayerNorm = LayerNorm(build, config)

    def forward(self, x_TF: torch.Tensor, residual_TD: torch.Tensor) -> torch.Tensor:
        return self.LayerNorm(self.dense(x_TF) + residual_TD)


class Attention(nn.Module):
    def __init__(self, config: EncoderConfig, build: Build, index: int):
        super().__init__()
        self.self = SelfAttention(config, build, index)
        self.output = Output(config, build, config.hidden_size)

    def forward(self, x_TD: torch.Tensor, attention: AttentionBackend) -> torch.Tensor:
        return self.output(self.self(x_TD, attention), x_TD)


class Intermediate(nn.Module):
    def __init__(self, config: EncoderConfig, build: Build):
        super().__init__()
        self.dense = Linear(build, config.hidden_size, config.intermediate_size)
        self.activation = ACTIVATIONS[config.activation]

    def forward(self, x_TD: torch.Tensor) -> torch.Tensor:
        return self.activation(self.dense(x_TD))


class Layer(nn.Module):
    def __init__(self, config: EncoderConfig, build: Build, index: int):
        super().__init__()
        self.attention = Attention(config, build, index)
        self.intermediate = Intermediate(config, build)
        self.output = Output(config, build, config.intermediate_size)

    def forward(self, x_TD: torch.Tensor, attention: AttentionBackend) -> torch.Tensor:
        x_TD = self.attention(x_TD, attention)
        return self.output(self.intermediate(x_TD), x_TD)


class Stack(nn.Module):
    def __init__(self, config: EncoderConfig, build: Build):
        super().__init__()
        self.layer = nn.ModuleList(Layer(config, build, index) for index in range(config.num_layers))


class BertEncoder(nn.Module):
    """`forward` gives hidden_TD of the last layer. context_length is not needed: positions come from a table."""

    causal = False

    def __init__(self, config: EncoderConfig, build: Build, context_length: int = 0):
        super().__init__()
        self.config = config
        self.embeddings = Embeddings(config, build)
        self.encoder = Stack(config, build)

    def forward(self, batch: WholeBatch, attention: AttentionBackend) -> torch.Tensor:
        x_TD = self.embeddings(batch)
        for layer in self.encoder.layer:
            x_TD = layer(x_TD, attention)
        return x_TD
