"""ModernBERT (Warner et al. 2024): an encoder with rotary positions, most of whose layers see a window only.

Module names are the checkpoint's. Legend: `raysgl.kernels.batch`.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import nn

from raysgl.kernels.attention import AttentionBackend, AttentionLayer
from raysgl.kernels.attention.whole import WholeBatch
from raysgl.kernels.rotary import cos_sin, rotate
from raysgl.models.bert import ACTIVATIONS, Linear
from raysgl.models.encoder_config import EncoderConfig
from raysgl.models.layers import Build, Piece, VocabEmbedding, whole

Rotary = tuple[torch.Tensor, torch.Tensor]
"""cos_T1H and sin_T1H of `raysgl.kernels.rotary`."""


class Norm(nn.Module):
    """Layer norm, mostly without a bias."""

    def __init__(self, config: EncoderConfig, build: Build):
        super().__init__()
        self.eps = config.layer_norm_eps
        self.weight = build.parameter(config.hidden_size)
        self.bias = build.parameter(config.hidden_size) if config.norm_bias else None

    def forward(self, x_TD: torch.Tensor) -> torch.Tensor:
        return F.layer_norm(x_TD, self.weight.shape, self.weight, self.bias, self.eps)

    def pieces(self, path: str) -> Iterator[Piece]:
        yield whole(f"{path}.weight", self.weight)
        if self.bias is not None:
            yield whole(f"{path}.bias", self.bias)


class Attention(nn.Module):
    def __init__(self, config: EncoderConfig, build: Build, index: int):
        super().__init__()
        self.heads, self.head_dim, size = config.num_heads, config.head_dim, config.hidden_size
        self.layer = AttentionLayer(index, config.head_dim**-0.5, config.windows[index])
        self.Wqkv = Linear(build, size, 3 * size, config.attention_bias)
        self.Wo = Linear(build, size, size, config.attention_bias)

    def forward(self, x_TD: torch.Tensor, rotary: Rotary, attention: AttentionBackend) -> torch.Tensor:
        qkv_TMH = self.Wqkv(x_TD).view(-1, 3 * self.heads, self.head_dim)
        qk_TMH = rotate(qkv_TMH[:, : 2 * self.heads], *rotary)
        q_TNH, k_TNH = qk_TMH.split(self.heads, dim=1)
        return self.Wo(attention.forward(q_TNH, k_TNH, qkv_TMH[:, 2 * self.heads :], self.layer).reshape(x_TD.shape))


class GatedMLP(nn.Module):
    def __init__(self, config: EncoderConfig, build: Build):
        super().__init__()
        self.Wi = Linear(build, config.hidden_size, 2 * config.intermediate_size, config.mlp_bias)
        self.Wo = Linear(build, config.intermediate_size, config.hidden_size, config.mlp_bias)
        self.activation = ACTIVATIONS[config.activation]

    def forward(self, x_TD: torch.Tensor) -> torch.Tensor:
        in_TF, gate_TF = self.Wi(x_TD).chunk(2, dim=-1)
        return self.Wo(self.activation(in_TF) * gate_TF)


class Layer(nn.Module):
    """The first one gets the embeddings normalised already."""

    def __init__(self, config: EncoderConfig, build: Build, index: int):
        super().__init__()
        self.attn_norm = Norm(config, build) if index else None
        self.attn = Attention(config, build, index)
        self.mlp_norm = Norm(config, build)
        self.mlp = GatedMLP(config, build)

    def forward(self, x_TD: torch.Tensor, rotary: Rotary, attention: AttentionBackend) -> torch.Tensor:
        x_TD = x_TD + self.attn(x_TD if self.attn_norm is None else self.attn_norm(x_TD), rotary, attention)
        return x_TD + self.mlp(self.mlp_norm(x_TD))


class Embeddings(nn.Module):
    def __init__(self, config: EncoderConfig, build: Build):
        super().__init__()
        self.tok_embeddings = VocabEmbedding(build, config.vocab_size, config.hidden_size)
        self.norm = Norm(config, build)


class ModernBertEncoder(nn.Module):
    """`forward` gives hidden_TD after the last norm. It tells no two texts apart."""

    def __init__(self, config: EncoderConfig, build: Build, context_length: int = 0):
        super().__init__()
        self.config, self.dtype = config, build.dtype
        self.embeddings = Embeddings(config, build)
        self.layers = nn.ModuleList(Layer(config, build, index) for index in range(config.num_layers))
        self.final_norm = Norm(config, build)
        exponents = torch.arange(0, config.head_dim, 2, dtype=torch.float32, device=build.device) / config.head_dim
        self.inv_freqs = {theta: theta**-exponents for theta in config.rope_thetas}

    def forward(self, batch: WholeBatch, attention: AttentionBackend) -> torch.Tensor:
        rotaries = {theta: cos_sin(batch.positions_T, freqs, 1.0, self.dtype) for theta, freqs in self.inv_freqs.items()}
        x_TD = self.embeddings.norm(self.embeddings.tok_embeddings(batch.token_ids_T))
        for theta, layer in zip(self.config.rope_thetas, self.layers, strict=True):
            x_TD = layer(x_TD, rotaries[theta], attention)
        return self.final_norm(x_TD)
