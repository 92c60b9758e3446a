"""What the config.json of an encoder (BERT and its kind) says. No torch: `raysgl check` reads it too."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

ACTIVATIONS = ("gelu", "gelu_new", "gelu_pytorch_tanh", "relu", "silu")


@dataclass(frozen=True)
class EncoderConfig:
    """Shape of an encoder whose tokens see each other in both directions.

    max_position_embeddings: tokens of a text, at most. first_position: row of the position table that the first token takes (RoBERTa
    keeps the first ones for padding). dtype: the checkpoint's. Of ModernBERT, each layer's base of its rotary embedding and its window
    (keys that many tokens away, in both directions, are not seen any more), and which of its parts have biases.
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
    rope_thetas: tuple[float, ...] = ()
    windows: tuple[int | None, ...] = ()
    norm_bias: bool = True
    attention_bias: bool = True
    mlp_bias: bool = True

    def num_parameters(self) -> int:
        """Weights of the body."""
        d, f = self.hidden_size, self.intermediate_size
        if self.rope_thetas:
            return self.vocab_size * d + 2 * d + self.num_layers * (4 * d * d + 3 * d * f + 2 * d)
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
    return _modern(config, architecture) if architecture.startswith("ModernBert") else _bert(config, architecture)


def _modern(config: dict[str, Any], architecture: str) -> EncoderConfig:
    layers, every = config["num_hidden_layers"], config.get("global_attn_every_n_layers", 3)
    kinds = config.get("layer_types") or ["sliding_attention" if i % every else "full_attention" for i in range(layers)]
    rope = config.get("rope_parameters") or {}
    bases = {
        "full_attention": config.get("global_rope_theta", 160000.0),
        "sliding_attention": config.get("local_rope_theta", 10000.0),
    }
    for kind, params in rope.items():
        if params.get("rope_type", "default") != "default":
            raise ValueError(f"the model's rope scaling is {params['rope_type']!r}, but encoders have none here")
        bases[kind] = params.get("rope_theta", bases[kind])
    return EncoderConfig(
        architecture=architecture,
        vocab_size=config["vocab_size"],
        hidden_size=config["hidden_size"],
        intermediate_size=config["intermediate_size"],
        num_layers=layers,
        num_heads=config["num_attention_heads"],
        head_dim=config["hidden_size"] // config["num_attention_heads"],
        activation=_activation(config.get("hidden_activation", "gelu")),
        layer_norm_eps=config.get("norm_eps", 1e-5),
        max_position_embeddings=config["max_position_embeddings"],
        first_position=0,
        type_vocab_size=0,
        dtype=config.get("dtype") or config.get("torch_dtype") or "float32",
        rope_thetas=tuple(float(bases[kind]) for kind in kinds),
        windows=tuple(config.get("local_attention", 128) // 2 + 1 if kind == "sliding_attention" else None for kind in kinds),
        norm_bias=config.get("norm_bias", False),
        attention_bias=config.get("attention_bias", False),
        mlp_bias=config.get("mlp_bias", False),
    )


def _activation(name: str) -> str:
    if name not in ACTIVATIONS:
        raise ValueError(f"the model's activation is {name!r}, but raysgl supports {', '.join(ACTIVATIONS)}")
    return name


def _bert(config: dict[str, Any], architecture: str) -> EncoderConfig:
    roberta = "Roberta" in architecture
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
        activation=_activation(config.get("hidden_act", "gelu")),
        layer_norm_eps=config.get("layer_norm_eps", 1e-12),
        max_position_embeddings=config["max_position_embeddings"] - first,
        first_position=first,
        type_vocab_size=config.get("type_vocab_size", 2),
        dtype=config.get("dtype") or config.get("torch_dtype") or "float32",
    )
