"""Architectures by the name in config.json. No torch here: a class is imported when a model of it is made."""

from __future__ import annotations

import importlib

ARCHITECTURES: dict[str, str] = {
    "LlamaForCausalLM": "raysgl.models.llama:LlamaForCausalLM",
    "MistralForCausalLM": "raysgl.models.mistral:MistralForCausalLM",
    "Qwen2ForCausalLM": "raysgl.models.qwen2:Qwen2ForCausalLM",
    "Qwen3ForCausalLM": "raysgl.models.qwen3:Qwen3ForCausalLM",
}
"""config.json's `architectures` -> import path of the model class."""


def model_class(architecture: str) -> type:
    """The nn.Module class of an architecture that `hf_config.parse` has accepted."""
    module, _, attribute = ARCHITECTURES[architecture].partition(":")
    return getattr(importlib.import_module(module), attribute)
