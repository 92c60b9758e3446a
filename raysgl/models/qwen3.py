"""Qwen3 dense models (Yang et al. 2025): Llama with queries and keys normalised for each head before they are rotated."""

from __future__ import annotations

import torch

from raysgl.kernels.rotary import rotate
from raysgl.models.hf_config import HFConfig
from raysgl.models.layers import Build, RMSNorm
from raysgl.models.llama import LlamaAttention, LlamaForCausalLM, LlamaLayer, Rotary


class Qwen3Attention(LlamaAttention):
    def __init__(self, config: HFConfig, build: Build, index: int):
        super().__init__(config, build, index)
        self.q_norm = RMSNorm(build, config.head_dim, config.rms_norm_eps)
        self.k_norm = RMSNorm(build, config.head_dim, config.rms_norm_eps)

    def head_norms(self) -> tuple[torch.Tensor | None, torch.Tensor | None, float]:
        return self.q_norm.weight, self.k_norm.weight, self.q_norm.eps

    def position(self, qk_TMH: torch.Tensor, rotary: Rotary) -> torch.Tensor:
        q_TNH, k_TKH = qk_TMH.split((self.num_heads, self.num_kv_heads), dim=1)
        return rotate(torch.cat((self.q_norm(q_TNH), self.k_norm(k_TKH)), dim=1), *rotary)


class Qwen3Layer(LlamaLayer):
    attention_class = Qwen3Attention


class Qwen3ForCausalLM(LlamaForCausalLM):
    layer_class = Qwen3Layer
