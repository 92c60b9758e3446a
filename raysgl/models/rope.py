"""Inverse frequencies of rotary embedding under each kind of context extension."""

from __future__ import annotations

import math

import torch

from raysgl.models.hf_config import HFConfig


def inverse_frequencies(config: HFConfig, context_length: int) -> tuple[torch.Tensor, float]:
    """float32 [head_dim / 2] on cpu, and what cos and sin are multiplied with.

    `context_length` is the longest sequence that will be served; it matters to `dynamic` only, whose base grows with the
    longest sequence. It is fixed here, so that a sequence's keys do not depend on which others ran before.
    """
    params, theta, dim = config.rope.params, config.rope.theta, config.head_dim
    kind = config.rope.kind
    if kind == "dynamic":
        longest = max(context_length, config.max_position_embeddings)
        growth = params["factor"] * longest / config.max_position_embeddings - (params["factor"] - 1)
        theta *= growth ** (dim / (dim - 2))
    plain = 1.0 / (theta ** (torch.arange(0, dim, 2, dtype=torch.float32) / dim))
    if kind == "linear":
        return plain / params["factor"], 1.0
    if kind == "factors":
        return plain / torch.tensor(params["factors"], dtype=torch.float32), 1.0
    if kind == "llama3":
        return _llama3(plain, params, config), 1.0
    if kind == "yarn":
        return _yarn(plain, params, config)
    return plain, 1.0


def _llama3(plain: torch.Tensor, params: dict, config: HFConfig) -> torch.Tensor:
    """Llama 3.1: long waves are stretched by `factor`, short ones kept, those between interpolated."""
    original = params.get("original_max_position_embeddings") or config.max_position_embeddings
    low, high = params["low_freq_factor"], params["high_freq_factor"]
    waves = original * plain / (2 * math.pi)  # how many waves the original context has
    keep = ((waves - low) / (high - low)).clamp(0, 1)
    return plain * (keep + (1 - keep) / params["factor"])


def _yarn(plain: torch.Tensor, params: dict, config: HFConfig) -> tuple[torch.Tensor, float]:
    """YaRN (Peng et al. 2023, section 3.2 and 3.4)."""
    factor = params["factor"]
    original = params.get("original_max_position_embeddings") or config.max_position_embeddings
    dim = config.head_dim

    def dimension(rotations: float) -> float:
        """The index of the frequency that makes so many rotations within the original context."""
        return dim * math.log(original / (rotations * 2 * math.pi)) / (2 * math.log(config.rope.theta))

    low, high = dimension(params.get("beta_fast") or 32), dimension(params.get("beta_slow") or 1)
    if params.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    stretch = ((torch.arange(dim // 2, dtype=torch.float32) - low) / max(high - low, 0.001)).clamp(0, 1)

    def magnitude(weight: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0

    scale = params.get("attention_factor")
    if scale is None:
        weight, weight_all = params.get("mscale"), params.get("mscale_all_dim")
        scale = magnitude(weight) / magnitude(weight_all) if weight and weight_all else magnitude(1.0)
    return plain / factor * stretch + plain * (1 - stretch), scale
