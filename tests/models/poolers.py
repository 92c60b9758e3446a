"""Tiny random checkpoints of models that make numbers of texts, made by transformers, and what transformers makes of token ids."""

from __future__ import annotations

import json
from pathlib import Path

import torch
import transformers

ENCODER = {
    "vocab_size": 256,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 130,
    "initializer_range": 0.3,
    "hidden_dropout_prob": 0.0,
}
DECODER = {
    "vocab_size": 256,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 512,
    "initializer_range": 0.3,
    "pad_token_id": 0,
}


def save(folder: Path, kind: str, **overrides) -> Path:
    """kind: a class of transformers, such as BertModel."""
    family = next(kind.removesuffix(end) for end in ("ForSequenceClassification", "ForCausalLM", "Model") if kind.endswith(end))
    sizes = ENCODER if "ert" in family else DECODER
    if family == "ModernBert":
        overrides = {"bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2, **overrides}
    config = getattr(transformers, f"{family}Config")(**{**sizes, **overrides})
    torch.manual_seed(0)
    getattr(transformers, kind)(config).float().eval().save_pretrained(folder)
    return folder


def sentence_transformers(folder: Path, mode: str = "mean_tokens", normalize: bool = True, longest: int | None = None) -> Path:
    """The files that sentence-transformers puts beside a model."""
    kinds = [("", "Transformer"), ("1_Pooling", "Pooling")] + [("2_Normalize", "Normalize")] * normalize
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (path, kind) in enumerate(kinds)
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir(exist_ok=True)
    modes = ("cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens", "weightedmean_tokens", "lasttoken")
    pooling = {f"pooling_mode_{name}": name == mode for name in modes}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": 32, **pooling}))
    if longest is not None:
        (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": longest}))
    return folder


class Reference:
    """transformers' model of a checkpoint, one text at a time."""

    def __init__(self, folder: Path, kind: str):
        options = {"dtype": torch.float32, "attn_implementation": "eager"}
        self._model = getattr(transformers, kind).from_pretrained(folder, **options).eval()

    @torch.inference_mode()
    def hidden(self, ids: list[int]) -> torch.Tensor:
        """[T, D] of the last layer."""
        return self._model(torch.tensor([ids])).last_hidden_state[0]

    @torch.inference_mode()
    def numbers(self, ids: list[int], first_segment: int = 0) -> torch.Tensor:
        """A classifier's, before any activation."""
        types = {}
        if first_segment:
            types["token_type_ids"] = torch.tensor([[int(i >= first_segment) for i in range(len(ids))]])
        return self._model(torch.tensor([ids]), **types).logits[0]
