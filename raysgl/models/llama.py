"""Llama 1 to 3.x (Touvron et al. 2023; Dubey et al. 2024), and what the other families of its kind build on.

Module names are the checkpoint's. Legend: `raysgl.kernels.batch`; F feed-forward dim of this rank, N and K heads of this rank.
"""

from __future__ import annotations

import torch
from torch import nn

from raysgl.kernels import linear_table
from raysgl.kernels.attention import AttentionBackend, AttentionLayer
from raysgl.kernels.batch import ForwardBatch
from raysgl.kernels.fused import triton_kernels
from raysgl.kernels.rotary import cos_sin, rotate
from raysgl.models.hf_config import HFConfig
from raysgl.models.layers import Build, ColumnLinear, RMSNorm, RowLinear, Rows, VocabEmbedding
from raysgl.models.rope import inverse_frequencies

Rotary = tuple[torch.Tensor, torch.Tensor] | torch.Tensor
"""cos_T1H and sin_T1H of `raysgl.kernels.rotary`; or the table that the fused kernel takes, where there is one."""


class LlamaAttention(nn.Module):
    def __init__(self, config: HFConfig, build: Build, index: int):
        super().__init__()
        self.num_heads = config.num_heads // build.tp.size
        self.num_kv_heads = config.kv_heads_per_rank(build.tp.size)
        self.head_dim = config.head_dim
        self.layer = AttentionLayer(index, config.head_dim**-0.5, config.windows[index])
        parts = [
            Rows.heads("q_proj", config.num_heads, config.head_dim, build.tp),
            Rows.heads("k_proj", config.num_kv_heads, config.head_dim, build.tp),
            Rows.heads("v_proj", config.num_kv_heads, config.head_dim, build.tp),
        ]
        self.qkv_proj = ColumnLinear(build, config.hidden_size, parts, config.qkv_bias)
        self.o_proj = RowLinear(build, config.num_heads * config.head_dim, config.hidden_size, config.output_bias)

    def forward(self, x_TD: torch.Tensor, rotary: Rotary, attention: AttentionBackend) -> torch.Tensor:
        heads, kv_heads = self.num_heads, self.num_kv_heads
        qkv_TMH = self.qkv_proj(x_TD).view(-1, heads + 2 * kv_heads, self.head_dim)
        if isinstance(rotary, torch.Tensor):
            return self.o_proj(self.write_and_attend(qkv_TMH, rotary, attention))
        qk_TMH = self.position(qkv_TMH[:, : heads + kv_heads], rotary)
        o_TNH = attention.forward(qk_TMH[:, :heads], qk_TMH[:, heads:], qkv_TMH[:, heads + kv_heads :], self.layer)
        return self.o_proj(o_TNH.reshape(-1, heads * self.head_dim))

    def folded(self, stream_TD: torch.Tensor, norm: RMSNorm, table_TH: torch.Tensor, attention: AttentionBackend) -> None:
        """See `LlamaLayer.folded`."""
        qkv_TMH = self.qkv_proj.folded(stream_TD, norm).view(-1, self.num_heads + 2 * self.num_kv_heads, self.head_dim)
        self.o_proj.folded(self.write_and_attend(qkv_TMH, table_TH, attention), stream_TD)

    def write_and_attend(self, qkv_TMH: torch.Tensor, table_TH: torch.Tensor, attention: AttentionBackend) -> torch.Tensor:
        """`position` and the cache write in one launch, then attention. Returns o_TNH with the heads side by side."""
        cache, index = attention.cache, self.layer.index
        q_norm, k_norm, eps = self.head_norms()
        fused = triton_kernels(qkv_TMH.device, qkv_TMH.dtype)
        keys, values, scales = cache.keys[index], cache.values[index], cache.layer_scales(index)
        q_TNH = fused.rotate_and_write(
            qkv_TMH, keys, values, attention.write_slots_T, table_TH, None, q_norm, k_norm, eps, scales
        )
        return attention.attend(q_TNH, self.layer).view(-1, self.num_heads * self.head_dim)

    def head_norms(self) -> tuple[torch.Tensor | None, torch.Tensor | None, float]:
        """Weights of the norms of each query and key head, and their epsilon."""
        return None, None, 0.0

    def position(self, qk_TMH: torch.Tensor, rotary: Rotary) -> torch.Tensor:
        """Rotate queries and keys; they lie side by side, so one call does both."""
        return rotate(qk_TMH, *rotary)


class LlamaMLP(nn.Module):
    def __init__(self, config: HFConfig, build: Build):
        super().__init__()
        parts = [Rows.split(name, config.intermediate_size, build.tp) for name in ("gate_proj", "up_proj")]
        self.gate_up_proj = ColumnLinear(build, config.hidden_size, parts, config.mlp_bias)
        self.down_proj = RowLinear(build, config.intermediate_size, config.hidden_size, config.mlp_bias)

    def forward(self, x_TD: torch.Tensor) -> torch.Tensor:
        return self.down_proj(self.gate_up_proj(x_TD, silu=True))

    def folded(self, stream_TD: torch.Tensor, norm: RMSNorm) -> None:
        """See `LlamaLayer.folded`."""
        self.down_proj.folded(self.gate_up_proj.folded(stream_TD, norm, silu=True), stream_TD)


class LlamaLayer(nn.Module):
    attention_class: type[LlamaAttention] = LlamaAttention

    def __init__(self, config: HFConfig, build: Build, index: int):
        super().__init__()
        self.self_attn = self.attention_class(config, build, index)
        self.mlp = LlamaMLP(config, build)
        self.input_layernorm = RMSNorm(build, config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(build, config.hidden_size, config.rms_norm_eps)

    def forward(
        self, x_TD: torch.Tensor, residual_TD: torch.Tensor | None, rotary: Rotary, attention: AttentionBackend
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """x is this rank's part of what the layer before adds to the residual stream; for the first layer it is the stream itself."""
        if residual_TD is None:
            x_TD, residual_TD = self.input_layernorm(x_TD), x_TD
        else:
            x_TD, residual_TD = self.input_layernorm.after_sum(x_TD, residual_TD, self.self_attn.qkv_proj.weight)
        x_TD = self.self_attn(x_TD, rotary, attention)
        x_TD, residual_TD = self.post_attention_layernorm.after_sum(x_TD, residual_TD, self.mlp.gate_up_proj.weight)
        return self.mlp(x_TD), residual_TD

    def folds(self, stream_TD: torch.Tensor) -> bool:
        """Whether `folded` is faster for so many tokens: it has a faster kernel for some of the layer's products."""
        attention, mlp = self.self_attn, self.mlp
        products = (attention.qkv_proj, False), (attention.o_proj, False), (mlp.gate_up_proj, True), (mlp.down_proj, False)
        return any(linear_table.find(stream_TD, linear.weight, silu) for linear, silu in products)

    def folded(self, stream_TD: torch.Tensor, table_TH: torch.Tensor, attention: AttentionBackend) -> None:
        """The whole layer, added to the residual stream in place: norms, SiLU and additions are the linear layers' own work."""
        self.self_attn.folded(stream_TD, self.input_layernorm, table_TH, attention)
        self.mlp.folded(stream_TD, self.post_attention_layernorm)


class LlamaModel(nn.Module):
    def __init__(self, config: HFConfig, build: Build, layer_class: type[LlamaLayer], context_length: int):
        super().__init__()
        self.dtype = build.dtype
        self.one_rank = build.tp.size == 1
        self.embed_tokens = VocabEmbedding(build, config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(layer_class(config, build, index) for index in range(config.num_layers))
        self.norm = RMSNorm(build, config.hidden_size, config.rms_norm_eps)
        inv_freq, self.rope_scale = inverse_frequencies(config, context_length)
        self.register_buffer("inv_freq", inv_freq.to(build.device), persistent=False)

    def forward(self, batch: ForwardBatch, attention: AttentionBackend) -> torch.Tensor:
        rotary: Rotary
        fused = triton_kernels(batch.positions_T.device, self.dtype) if attention.has_attend else None
        if fused is not None:
            rotary = fused.rotary_table(batch.positions_T, self.inv_freq, self.rope_scale)
        else:
            rotary = cos_sin(batch.positions_T, self.inv_freq, self.rope_scale, self.dtype)
        x_TD, residual_TD = self.embed_tokens(batch.token_ids_T), None
        if isinstance(rotary, torch.Tensor) and self.one_rank and self.layers[0].folds(x_TD):
            for layer in self.layers:
                layer.folded(x_TD, rotary, attention)
            return self.norm(x_TD)
        for layer in self.layers:
            x_TD, residual_TD = layer(x_TD, residual_TD, rotary, attention)
        return self.norm.after_sum(x_TD, residual_TD)[0]


class LlamaForCausalLM(nn.Module):
    """A family is this class with another `layer_class`."""

    layer_class: type[LlamaLayer] = LlamaLayer

    def __init__(self, config: HFConfig, build: Build, context_length: int):
        super().__init__()
        self.config = config
        self.model = LlamaModel(config, build, self.layer_class, context_length)
        self.lm_head = None if config.tie_word_embeddings else VocabEmbedding(build, config.vocab_size, config.hidden_size)

    @torch.inference_mode()
    def forward(self, batch: ForwardBatch, attention: AttentionBackend) -> torch.Tensor:
        """hidden_TD after the last norm. `attention.plan(batch)` must have been called."""
        return self.model(batch, attention)

    @property
    def head(self) -> VocabEmbedding:
        """The output layer."""
        return self.lm_head or self.model.embed_tokens

    @torch.inference_mode()
    def logits(self, hidden_LD: torch.Tensor) -> torch.Tensor:
        """[L, V] on every rank, in the model's dtype. Every rank must call it."""
        return self.head.join(self.head.logits_part(hidden_LD))
