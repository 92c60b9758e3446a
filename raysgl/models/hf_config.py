"""What a checkpoint's config.json says, in one form for all families. No torch: `raysgl check` reads it too."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raysgl.models import encoder_config
from raysgl.models.encoder_config import EncoderConfig
from raysgl.models.registry import ARCHITECTURES, ENCODERS, decoder_of

ROPE_KINDS = ("default", "linear", "dynamic", "llama3", "yarn", "factors")
ACTIVATIONS = ("silu", "swish")


class ModelError(ValueError):
    """The model cannot be found or served. The message is one sentence for the user."""


@dataclass(frozen=True)
class Rope:
    """Rotary embedding: base and scaling. `params` has the scaling's own numbers, by their Hugging Face names.

    Kind "factors" is raysgl's: `params["factors"]` divide the frequencies one by one (what GGUF files store for llama3).
    """

    theta: float
    kind: str
    params: dict[str, Any]


@dataclass(frozen=True)
class HFConfig:
    """Shape of a decoder-only model. Sizes are of the whole model, before it is sharded.

    windows: for each layer its sliding window in tokens, or None.
    dtype: the checkpoint's, "bfloat16" for instance. eos_token_ids: of config.json and generation_config.json.
    """

    architecture: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rms_norm_eps: float
    max_position_embeddings: int
    tie_word_embeddings: bool
    rope: Rope
    windows: tuple[int | None, ...]
    dtype: str
    eos_token_ids: tuple[int, ...]
    bos_token_id: int | None
    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False

    def num_parameters(self) -> int:
        """Weights of the whole model; tied embeddings count once."""
        d, f, q, kv = (
            self.hidden_size,
            self.intermediate_size,
            self.num_heads * self.head_dim,
            self.num_kv_heads * self.head_dim,
        )
        attention = (
            d * (q + 2 * kv) + q * d + self.qkv_bias * (q + 2 * kv) + self.output_bias * d + self.qk_norm * 2 * self.head_dim
        )
        mlp = 3 * d * f + self.mlp_bias * (2 * f + d)
        embeddings = self.vocab_size * d * (1 if self.tie_word_embeddings else 2)
        return self.num_layers * (attention + mlp + 2 * d) + embeddings + d

    def kv_heads_per_rank(self, tp_size: int) -> int:
        """Key/value heads that each rank holds; with more ranks than heads, several ranks hold the same one."""
        return max(1, self.num_kv_heads // tp_size)

    def kv_bytes_per_token(self, tp_size: int, dtype_bytes: int) -> int:
        """Bytes of KV cache that one token takes on one rank."""
        return self.num_layers * 2 * self.kv_heads_per_rank(tp_size) * self.head_dim * dtype_bytes

    def check_tp(self, tp_size: int) -> None:
        """Raise `ModelError` if the model cannot be split over so many ranks."""
        if self.num_heads % tp_size:
            raise ModelError(f"tp_size is {tp_size}, but must divide the model's {self.num_heads} attention heads")
        if self.num_kv_heads % tp_size and tp_size % self.num_kv_heads:
            raise ModelError(
                f"tp_size is {tp_size}, but must divide the model's {self.num_kv_heads} key/value heads, or be a multiple of them"
            )
        if self.intermediate_size % tp_size:
            raise ModelError(f"tp_size is {tp_size}, but must divide the model's intermediate_size {self.intermediate_size}")


def read(folder: Path) -> HFConfig | EncoderConfig:
    """Parse a checkpoint folder's config.json (and generation_config.json). Raises `ModelError`."""
    path = folder / "config.json"
    if not path.is_file():
        raise ModelError(f"{folder} has no config.json, so it is not a model folder")
    generation = folder / "generation_config.json"
    return parse(_read_json(path), _read_json(generation) if generation.is_file() else {})


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelError(f"{path} is not valid JSON: {error}") from None


def parse(config: dict[str, Any], generation: dict[str, Any] | None = None) -> HFConfig | EncoderConfig:
    """Raises `ModelError` for architectures, quantisations, activations and rope scalings that are not supported.

    A decoder without its output layer (LlamaModel, ...ForSequenceClassification) is described as the one with it.
    """
    architecture = _architecture(config)
    quantised = config.get("quantization_config")
    if quantised:
        raise ModelError(f"the model is quantised with {quantised.get('quant_method')}, which raysgl does not support")
    if architecture in ENCODERS:
        return _encoder(config, architecture)
    try:
        heads = config["num_attention_heads"]
        layers = config["num_hidden_layers"]
        bias = config.get("attention_bias", False) and architecture in ("LlamaForCausalLM", "Qwen3ForCausalLM")
        activation = config.get("hidden_act", "silu")
        if activation not in ACTIVATIONS:
            raise ModelError(f"the model's hidden_act is {activation!r}, but only silu is supported")
        return HFConfig(
            architecture=architecture,
            vocab_size=config["vocab_size"],
            hidden_size=config["hidden_size"],
            intermediate_size=config["intermediate_size"],
            num_layers=layers,
            num_heads=heads,
            num_kv_heads=config.get("num_key_value_heads") or heads,
            head_dim=config.get("head_dim") or config["hidden_size"] // heads,
            rms_norm_eps=config.get("rms_norm_eps", 1e-6),
            max_position_embeddings=config["max_position_embeddings"],
            tie_word_embeddings=config.get("tie_word_embeddings", False),
            rope=_rope(config),
            windows=_windows(config, architecture, layers),
            dtype=config.get("dtype") or config.get("torch_dtype") or "float32",
            eos_token_ids=_eos(config, generation or {}),
            bos_token_id=config.get("bos_token_id"),
            qkv_bias=bias or architecture == "Qwen2ForCausalLM",
            output_bias=bias,
            mlp_bias=architecture == "LlamaForCausalLM" and config.get("mlp_bias", False),
            qk_norm=architecture == "Qwen3ForCausalLM",
        )
    except KeyError as error:
        raise ModelError(f"the model's config.json has no {error}") from None


def supported(architecture: str) -> bool:
    """Whether models of this name can be served, as whatever they are."""
    return architecture in ENCODERS or decoder_of(architecture) is not None


def _architecture(config: dict[str, Any]) -> str:
    names = config.get("architectures") or []
    for name in names:
        if supported(name):
            return decoder_of(name) or name
    found = " and ".join(names) or f"of unnamed architecture (model_type {config.get('model_type')!r})"
    raise ModelError(
        f"the model is {found}, but raysgl supports {', '.join(sorted(ARCHITECTURES))}, and to make vectors {', '.join(sorted(ENCODERS))}"
    )


def _encoder(config: dict[str, Any], architecture: str) -> EncoderConfig:
    try:
        return encoder_config.parse(config, architecture)
    except KeyError as error:
        raise ModelError(f"the model's config.json has no {error}") from None
    except ValueError as error:
        raise ModelError(str(error)) from None


def _rope(config: dict[str, Any]) -> Rope:
    """From `rope_parameters` (transformers 5), or `rope_theta` and `rope_scaling` (before)."""
    params = dict(config.get("rope_parameters") or config.get("rope_scaling") or {})
    theta = params.pop("rope_theta", None) or config.get("rope_theta") or 10000.0
    kind = params.pop("rope_type", None) or params.pop("type", None) or "default"
    params.pop("type", None)
    if kind not in ROPE_KINDS:
        raise ModelError(f"the model's rope scaling is {kind!r}, but raysgl supports {', '.join(ROPE_KINDS)}")
    if params.pop("partial_rotary_factor", None) not in (None, 1, 1.0):
        raise ModelError("the model rotates a part of each head only (partial_rotary_factor), which raysgl does not support")
    if kind in ("linear", "dynamic", "llama3", "yarn") and "factor" not in params:
        raise ModelError(f"the model's rope scaling {kind!r} has no factor")
    return Rope(float(theta), kind, params)


def _windows(config: dict[str, Any], architecture: str, layers: int) -> tuple[int | None, ...]:
    window = config.get("sliding_window")
    if architecture == "LlamaForCausalLM" or window is None:
        return (None,) * layers
    if architecture == "MistralForCausalLM":
        return (window,) * layers
    if not config.get("use_sliding_window", False):
        return (None,) * layers
    types = config.get("layer_types")
    if types is None:
        first = config.get("max_window_layers", 28)
        types = ["full_attention" if i < first else "sliding_attention" for i in range(layers)]
    return tuple(window if kind == "sliding_attention" else None for kind in types)


def _eos(config: dict[str, Any], generation: dict[str, Any]) -> tuple[int, ...]:
    ids: list[int] = []
    for source in (config, generation):
        value = source.get("eos_token_id")
        ids += value if isinstance(value, list) else [] if value is None else [value]
    return tuple(dict.fromkeys(ids))
