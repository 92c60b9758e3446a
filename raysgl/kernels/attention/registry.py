"""Backends by name, and which one `auto` means."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Iterable

from raysgl.kernels.attention import flash_attn
from raysgl.kernels.attention.interface import AttentionBackend
from raysgl.kernels.attention.kv_cache import KVCache
from raysgl.kernels.fused import triton_kernels

logger = logging.getLogger(__name__)

BACKENDS: dict[str, str] = {
    "torch": "raysgl.kernels.attention.torch_backend:TorchBackend",
    "triton": "raysgl.kernels.triton.backend:TritonBackend",
    "flash_attn": "raysgl.kernels.attention.flash_attn:FlashAttnBackend",
    "flashinfer": "raysgl.kernels.attention.flash_infer:FlashInferBackend",
}
"""name -> import path of a class with the constructor of `AttentionBackend`."""


def choose_backend(name: str, cache: KVCache) -> str:
    """The name of the backend that `name` (an EngineConfig.attention_backend) means for this cache on its device."""
    if name != "auto":
        return name
    if flash_attn.refuses(cache.device, cache.head_dim, cache.dtype, cache.quantised) is None:
        chosen = "flash_attn"
    elif triton_kernels(cache.device, cache.dtype):
        chosen = "triton"
    else:
        chosen = "torch"
    logger.info("attention backend: %s (auto, on %s)", chosen, cache.device.type)
    return chosen


def create_backend(name: str, cache: KVCache, num_heads: int, windows: Iterable[int | None] = (None,)) -> AttentionBackend:
    """Make a backend for this cache. `num_heads` are the rank's query heads.

    Raises ValueError for an unknown name, `UnsupportedAttention` for a backend that cannot serve this cache here.
    """
    chosen = choose_backend(name, cache)
    if chosen not in BACKENDS:
        raise ValueError(f"attention_backend is {chosen!r}, but must be auto or one of {', '.join(sorted(BACKENDS))}")
    module, _, attribute = BACKENDS[chosen].partition(":")
    return getattr(importlib.import_module(module), attribute)(cache, num_heads, windows)
