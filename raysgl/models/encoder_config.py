"""What the config.json of an encoder (BERT and its kind) says. No torch: `raysgl check` reads it too."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

ACTIVATIONS = ("gelu", "gelu_new", "gelu_pytorch_tanh", "relu", "silu")


@dataclass(frozen=True)
class EncoderConfig:
    """Shape of an encoder whose tokens see each other in both directions.

    max_position_embeddings: tokens of a text, at most. first_position: row of the position table that the first token takes (RoBERTa
    keeps the first ones for padding). dtype: the checkpoint's.
    """

    architecture: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    head_dim: int
    activation: str
    layer_norm_eps: float
    max_position_embeddings: int
    first_position: int
    type_vocab_size: int
    dtype: str
    eos_token_ids: tuple[int, ...] = ()

    def num_parameters(self) -> int:
        """Weights of the body."""
        d, f = self.hidden_size, self.intermediate_size
        layer = 4 * (d * d + d) + 2 * d * f + f + d + 4 * d
        tables = self.vocab_size + self.first_position + self.max_position_embeddings + self.type_vocab_size
        return tables * d + 2 * d + self.num_layers * layer

    def kv_bytes_per_token(self, tp_size: int, dtype_bytes: int) -> int:
        """Nothing is kept of a text."""
        return 0

    def check_tp(self, tp_size: int) -> None:
        """Any: that models of this kind are not split is said elsewhere, for all that make vectors."""


def parse(config: dict[str, Any], architecture: str) -> EncoderConfig:
    """KeyError for a field that is missing, ValueError for what is not supported."""
    roberta = "Roberta" in architecture
    activation = config.get("hidden_act", "gelu")
    if activation not in ACTIVATIONS:
        raise ValueError(f"the model's hidden_act is {activation!r}, but raysgl supports {', '.join(ACTIVATIONS)}")
    kind = config.get("position_embedding_type") or "absolute"
    if kind != "absolute":
        raise ValueError(f"the model's position_embedding_type is {kind!r}, but only 'absolute' is supported")
    if config.get("is_decoder"):
        raise ValueError("the model is an encoder made into a decoder (is_decoder), which raysgl does not support")
    first = config.get("pad_token_id", 1) + 1 if roberta else 0
    return EncoderConfig(
        architecture=architecture,
        vocab_size=config["vocab_size"],
        hidden_size=config["hidden_size"],
        intermediate_size=config["intermediate_size"],
        num_layers=config["num_hidden_layers"],
        num_heads=config["num_attention_heads"],
        head_dim=config["hidden_size"] // config["num_attention_heads"],
        activation=activation,
        layer_norm_eps=config.get("layer_norm_eps", 1e-12),
        max_position_embeddings=config["max_position_embeddings"] - first,
        first_position=first,
        type_vocab_size=config.get("type_vocab_size", 2),
        dtype=config.get("dtype") or config.get("torch_dtype") or "float32",
    )
