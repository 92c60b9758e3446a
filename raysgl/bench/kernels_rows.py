"""Row operations and sampling: ours against torch and FlashInfer."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from raysgl.bench.kernels_timing import Bench, Call
from raysgl.kernels import activation, norm, rotary
from raysgl.kernels.attention import KVCache
from raysgl.kernels.triton.activation import silu_mul
from raysgl.kernels.triton.argmax import argmax
from raysgl.kernels.triton.draw import draw
from raysgl.kernels.triton.norm import add_rms_norm
from raysgl.kernels.triton.rotary import rotary_table, rotate_and_write
from raysgl.sampling import filters


def flashinfer_module() -> Any:
    """FlashInfer, if it is there and may be used without compiling anything."""
    os.environ.setdefault("FLASHINFER_DISABLE_JIT", "1")
    try:
        import flashinfer
    except Exception:  # noqa: BLE001 - whatever it lacks, the others go on
        return None
    return flashinfer


def bench_rows(bench: Bench, cache: KVCache) -> None:
    print("\nrow operations, us; TB/s ours / best")
    library = flashinfer_module() if bench.device.type == "cuda" and not bench.tiny else None
    for rows in bench.sizes.rows:
        bench_norm(bench, rows, library)
        bench_silu(bench, rows, library)
        bench_rotary(bench, rows, cache)


def bench_norm(bench: Bench, rows: int, library: Any) -> None:
    weight = bench.random(bench.sizes.hidden).add_(1.0)
    x, stream = bench.random(rows, bench.sizes.hidden), bench.random(rows, bench.sizes.hidden)
    want, want_stream = norm.add_rms_norm(x, stream.clone(), weight, 1e-5)
    got, got_stream = add_rms_norm(x, stream.clone(), weight, 1e-5)
    bench.check(f"add_rms_norm {rows}", got, want)
    bench.check(f"add_rms_norm {rows}: residual", got_stream, want_stream)
    others: dict[str, Call] = {"torch": lambda: norm.add_rms_norm(x, stream, weight, 1e-5)}
    if library:
        others["flashinfer"] = lambda: library.fused_add_rmsnorm(x, stream, weight, 1e-5)
    compare(bench, f"add_rms_norm {rows}", lambda: add_rms_norm(x, stream, weight, 1e-5), others, 8 * x.numel())


def bench_silu(bench: Bench, rows: int, library: Any) -> None:
    wide = bench.random(rows, 2 * bench.sizes.intermediate)
    bench.check(f"silu_mul {rows}", silu_mul(wide), activation.silu_mul(wide))
    others: dict[str, Call] = {"torch": lambda: activation.silu_mul(wide)}
    if library:
        others["flashinfer"] = lambda: library.silu_and_mul(wide)
    compare(bench, f"silu_mul {rows}", lambda: silu_mul(wide), others, 3 * wide.numel())


def bench_rotary(bench: Bench, rows: int, cache: KVCache) -> None:
    sizes, device = bench.sizes, bench.device
    heads, kv_heads, dim = sizes.heads, sizes.kv_heads, sizes.dim
    keys, values = cache.keys[0], cache.values[0]
    qkv = bench.random(rows, heads + 2 * kv_heads, dim)
    positions = torch.randint(0, 4096, (rows,), device=device)
    slots = (torch.randperm(len(keys) - 1, device=device) + 1)[:rows]
    inv_freq = 1e4 ** -(torch.arange(0, dim, 2, device=device) / dim)
    table, factors = rotary_table(positions, inv_freq), rotary.cos_sin(positions, inv_freq, 1.0, torch.float32)
    q = rotate_and_write(qkv, keys, values, slots, table)
    turned = rotary.rotate(qkv[:, : heads + kv_heads].float(), *factors)
    bench.check(f"rotate_and_write {rows}: q", q, turned[:, :heads])
    bench.check(f"rotate_and_write {rows}: k", keys[slots], turned[:, heads:])
    bench.check(f"rotate_and_write {rows}: v", values[slots], qkv[:, heads + kv_heads :], 1e-12)
    half = [factor.to(qkv.dtype) for factor in factors]

    def separate() -> None:
        qk = rotary.rotate(qkv[:, : heads + kv_heads], *half)
        keys.index_copy_(0, slots, qk[:, heads:])
        values.index_copy_(0, slots, qkv[:, heads + kv_heads :])

    ours = partial(rotate_and_write, qkv, keys, values, slots, table)
    compare(bench, f"rotate_and_write {rows}", ours, {"torch": separate}, 4 * qkv.numel())


def bench_sampling(bench: Bench) -> None:
    print("\nsampling, us; TB/s ours / best")
    library = flashinfer_module() if bench.device.type == "cuda" and not bench.tiny else None
    for rows in bench.sizes.rows:
        for dtype in (torch.bfloat16, torch.float32):
            bench_argmax(bench, rows, dtype)
        bench_draw(bench, rows, library)


def bench_argmax(bench: Bench, rows: int, dtype: torch.dtype) -> None:
    logits = bench.random(rows, bench.sizes.vocab).to(dtype)
    what = f"argmax {rows} {str(dtype).removeprefix('torch.')}"
    got = argmax(logits)
    bench.check(what, logits.gather(1, got[:, None])[:, 0].float(), logits.max(-1).values.float(), 1e-12)
    others: dict[str, Call] = {"torch": lambda: logits.argmax(-1)}
    compare(bench, what, lambda: argmax(logits), others, logits.numel() * logits.element_size())


def bench_draw(bench: Bench, rows: int, library: Any) -> None:
    """Spread 1 is flat: most of the vocabulary is in the nucleus. Spread 4 is like a language model's."""
    for name, spread, top_p, top_k in (
        ("no filter", 1.0, filters.OFF, None),
        ("top-p 0.9, flat", 1.0, 0.9, None),
        ("top-p 0.9, peaked", 4.0, 0.9, None),
        ("top-k 50", 1.0, filters.OFF, 50),
    ):
        for dtype in (torch.bfloat16, torch.float32):
            logits = (bench.random(rows, bench.sizes.vocab).float() * spread).to(dtype)
            numbers = torch.tensor([0.8, top_p, top_k or bench.sizes.vocab, -math.inf, 0.0], dtype=torch.float64)
            numbers = numbers.repeat(rows, 1).to(bench.device)
            numbers[:, 4] = torch.rand(rows, dtype=torch.float64, device=bench.device)
            ours = partial(draw, logits, *numbers.unbind(1))
            reference = partial(_reference, logits, numbers)
            what = f"draw {rows}, {name}, {str(dtype).removeprefix('torch.')}"
            same = (ours() == reference()).double().mean()
            # Rounding may move a draw at the edge of a token's share to the next one.
            bench.check(what, same, torch.ones_like(same), 0.02)
            others: dict[str, Call] = {"torch": reference}
            if library:
                wide = torch.softmax(logits.float(), -1)
                others["flashinfer"] = lambda: library.sampling.top_k_top_p_sampling_from_probs(
                    wide,  # noqa: B023
                    top_k or bench.sizes.vocab,  # noqa: B023
                    min(top_p, 1.0),  # noqa: B023
                )
            compare(bench, what, ours, others, logits.numel() * logits.element_size())


def _reference(logits_LV: torch.Tensor, numbers_L5: torch.Tensor) -> torch.Tensor:
    temperature, top_p, top_k, _, uniform = numbers_L5.unbind(1)
    x = logits_LV.float()
    x = (x - x.amax(-1, keepdim=True)) / temperature.float().unsqueeze(1)
    weights, total = filters.weights(x)
    least = filters.thresholds(x, total.float(), top_p.float(), top_k.long(), x.shape[1])
    weights[:, : x.shape[1]].mul_(x >= least.unsqueeze(1))
    return filters.draw(weights, uniform)


def compare(bench: Bench, what: str, ours: Callable[[], Any], others: dict[str, Call], num_bytes: float) -> None:
    times = {"ours": bench.time([ours])}
    for name, call in others.items():
        try:
            times[name] = bench.time([call])
        except Exception as error:  # noqa: BLE001 - whatever it lacks, the others go on
            print(f"{what}: {name}: {str(error)[:100]}")
            if torch.cuda.is_available():
                torch.cuda.synchronize()
    bench.report(what, times, num_bytes)
