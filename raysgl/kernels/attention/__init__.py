"""Attention over the paged KV cache: the interface, the cache, and the registry of backends.

A backend writes the step's keys and values to the cache and attends. The runner calls `plan` once per step, the model
calls `forward` once per layer. To add one: write a module with a class of the same constructor, add a line to `BACKENDS`.
"""

from raysgl.kernels.attention.interface import (
    AttentionBackend,
    AttentionLayer,
    GraphAttention,
    HostPlanned,
    UnsupportedAttention,
)
from raysgl.kernels.attention.kv_cache import FP8, KVCache, page_bytes
from raysgl.kernels.attention.registry import BACKENDS, create_attention, create_backend
from raysgl.kernels.attention.step import StepAttention

__all__ = [
    "BACKENDS",
    "FP8",
    "AttentionBackend",
    "AttentionLayer",
    "GraphAttention",
    "HostPlanned",
    "KVCache",
    "StepAttention",
    "UnsupportedAttention",
    "create_attention",
    "create_backend",
    "page_bytes",
]
