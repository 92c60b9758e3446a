"""Qwen2 and Qwen2.5 dense models (Yang et al. 2024): Llama with a bias on queries, keys and values."""

from __future__ import annotations

from raysgl.models.llama import LlamaForCausalLM


class Qwen2ForCausalLM(LlamaForCausalLM):
    """The bias is `HFConfig.qkv_bias`; some checkpoints have sliding windows in their upper layers (`HFConfig.windows`)."""
