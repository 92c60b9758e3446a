"""Backends by name, and which ones `auto` means."""

from __future__ import annotations

import importlib
import math
from collections.abc import Iterable
from types import ModuleType

from raysgl.kernels.attention import table
from raysgl.kernels.attention.interface import AttentionBackend
from raysgl.kernels.attention.kv_cache import KVCache
from raysgl.kernels.attention.step import Choice, StepAttention
from raysgl.kernels.attention.table import Rank
from raysgl.kernels.fused import triton_kernels

BACKENDS: dict[str, str] = {
    "torch": "raysgl.kernels.attention.torch_backend:TorchBackend",
    "triton": "raysgl.kernels.triton.backend:TritonBackend",
    "flash_attn": "raysgl.kernels.attention.flash_attn:FlashAttnBackend",
    "flashinfer": "raysgl.kernels.attention.flash_infer:FlashInferBackend",
}
"""name -> import path of a class with the constructor of `AttentionBackend`. On a GPU its module has `refuses`."""

PREFERRED = ("flash_attn", "triton", "flashinfer")
"""On a GPU that nobody has measured."""
WORTH_IT = 1.02
"""By so much another backend must be faster to be taken for some numbers of decode rows: it has kernels to load, and memory."""


def _module(name: str) -> ModuleType:
    return importlib.import_module(BACKENDS[name].partition(":")[0])


def choose(kind: str, name: str, cache: KVCache, num_heads: int, windows: Iterable[int | None]) -> Choice:
    """What `name`, a setting of the EngineConfig, means for steps of this kind ("prefill" or "decode")."""
    if name != "auto":
        return Choice(name, why="as set")
    if triton_kernels(cache.device, cache.dtype) is None:
        return Choice("torch", why=f"auto, on {cache.device.type} in {str(cache.dtype).removeprefix('torch.')}")
    refused = {}
    for candidate in PREFERRED:
        if reason := _module(candidate).refuses(cache.device, cache.head_dim, cache.dtype, cache.quantised):
            refused[candidate] = reason
    measured = table.read(cache.device, cache.head_dim)
    choice = _automatic(kind, refused, *measured)
    if choice.backend == "flashinfer" and not _module("flashinfer").compiled(cache, num_heads, windows):
        refused["flashinfer"] = "is not compiled for this model (set it, and it will be: that takes minutes)"
        choice = _automatic(kind, refused, *measured)
    return choice


def _automatic(kind: str, refused: dict[str, str], measured: str, source: str) -> Choice:
    """The fastest of those that do not refuse; without a measurement, the first."""

    def able(ranks: list[Rank]) -> list[Rank]:
        return [rank for rank in ranks if rank.backend not in refused]

    ranks = able(table.ranking(measured, kind)) if measured else []
    without = "".join(f"; {name} {reason}" for name, reason in refused.items())
    if not ranks:
        left = [name for name in PREFERRED if name not in refused]
        return Choice(left[0] if left else "torch", f"auto, nothing measured for this GPU and head dim{without}")
    best = ranks[0].backend
    at = []
    for rows in table.measured_rows(measured) if kind == "decode" else ():
        here = able(table.ranking(measured, kind, rows))
        usual = next((rank.slowness for rank in here if rank.backend == best), math.inf)
        at.append((rows, here[0].backend if here and here[0].slowness * WORTH_IT < usual else best))
    times = ", ".join(f"{rank.backend} {rank.slowness:.2f}" for rank in ranks)
    others = "".join(f"; at {rows} rows: {name}" for rows, name in at if name != best)
    return Choice(best, f"auto, by {source}: {times} of the fastest times{others}{without}", tuple(at))


def create_backend(
    name: str, cache: KVCache, num_heads: int, windows: Iterable[int | None] = (None,), kind: str = "prefill"
) -> AttentionBackend:
    """Make a backend for this cache. `num_heads` are the rank's query heads. auto: by the kind of steps, "prefill" or "decode".

    Raises ValueError for an unknown name, `UnsupportedAttention` for a backend that cannot serve this cache here.
    """
    windows = tuple(windows)
    return _create(choose(kind, name, cache, num_heads, windows), cache, num_heads, windows)


def _create(choice: Choice, cache: KVCache, num_heads: int, windows: Iterable[int | None]) -> AttentionBackend:
    if choice.backend not in BACKENDS:
        raise ValueError(f"attention_backend is {choice.backend!r}, but must be auto or one of {', '.join(sorted(BACKENDS))}")
    attribute = BACKENDS[choice.backend].partition(":")[2]
    return getattr(_module(choice.backend), attribute)(cache, num_heads, windows)


def create_attention(
    prefill: str, decode: str, cache: KVCache, num_heads: int, windows: Iterable[int | None] = (None,)
) -> StepAttention:
    """Backends by name (or auto) for steps with prompts and for steps without. Raises as `create_backend`."""
    windows = tuple(windows)
    choices = [choose(kind, name, cache, num_heads, windows) for kind, name in (("prefill", prefill), ("decode", decode))]
    prompts, rows = choices
    made = {choice.backend: _create(choice, cache, num_heads, windows) for choice in choices}
    for _, name in rows.at:
        if name not in made:
            made[name] = _create(Choice(name, ""), cache, num_heads, windows)
    why = f"prefill {prompts}, decode {rows}"
    return StepAttention(made[prompts.backend], made, rows, cache, why)
