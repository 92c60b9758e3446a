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

ENCODERS: dict[str, str] = {
    f"{family}{kind}": "raysgl.models.bert:BertEncoder"
    for family in ("Bert", "Roberta", "XLMRoberta")
    for kind in ("Model", "ForSequenceClassification", "ForMaskedLM")
} | {"ModernBertModel": "raysgl.models.modernbert:ModernBertEncoder"}
"""The same for models that make a vector of a text, and see it in both directions."""

CAUSAL = "ForCausalLM"
WITHOUT_OUTPUT = ("Model", "ForSequenceClassification")
"""How checkpoints call a decoder that has something else than an output layer over the vocabulary, or nothing."""


def decoder_of(architecture: str) -> str | None:
    """The name in `ARCHITECTURES` of the decoder that this is, with whatever on top of it; None: it is none."""
    if architecture in ARCHITECTURES:
        return architecture
    for end in WITHOUT_OUTPUT:
        causal = architecture.removesuffix(end) + CAUSAL
        if architecture.endswith(end) and causal in ARCHITECTURES:
            return causal
    return None


def model_class(architecture: str) -> type:
    """The nn.Module class of an architecture that `hf_config.parse` has accepted."""
    module, _, attribute = (ARCHITECTURES | ENCODERS)[architecture].partition(":")
    return getattr(importlib.import_module(module), attribute)
