"""Mistral dense models (Jiang et al. 2023): Llama whose layers attend within a sliding window where config.json has one."""

from __future__ import annotations

from raysgl.models.llama import LlamaForCausalLM


class MistralForCausalLM(LlamaForCausalLM):
    """The window is in `HFConfig.windows`; there is nothing else that Llama has not."""
