"""Row operations and sampling: ours against torch and FlashInfer."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from raysgl.bench.kernels_timing import Bench, Call
from raysgl.kernels import activation, norm, rotary
from raysgl.kernels.attention import KVCache
from raysgl.kernels.triton import sampling
from raysgl.kernels.triton.activation import silu_mul
from raysgl.kernels.triton.norm import add_rms_norm
from raysgl.kernels.triton.rotary import rotary_table, rotate_and_write


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
    got = sampling.argmax(logits)
    bench.check(what, logits.gather(1, got[:, None])[:, 0].float(), logits.max(-1).values.float(), 1e-12)
    others: dict[str, Call] = {"torch": lambda: logits.argmax(-1)}
    compare(bench, what, lambda: sampling.argmax(logits), others, logits.numel() * logits.element_size())


def bench_draw(bench: Bench, rows: int, library: Any) -> None:
    logits = bench.random(rows, bench.sizes.vocab).float()
    temperature = torch.full((rows,), 0.8, device=bench.device)
    seed = torch.arange(rows, device=bench.device)
    ours = partial(sampling.sample, logits, temperature, seed, seed)
    drawn = ours()
    bench.check(f"sample {rows}: the same twice", ours().double() + 1.0, drawn.double() + 1.0, 1e-12)
    if rows >= 64:
        # The drawn entry of normal logits has mean 1 / t at temperature t: the softmax tilts the normal distribution by that.
        mean = logits.gather(1, drawn[:, None]).mean()
        bench.check(f"sample {rows}: mean logit", mean, torch.full_like(mean, 1 / 0.8), 0.3)
    others: dict[str, Call] = {"torch": lambda: torch.softmax(logits / 0.8, -1).multinomial(1)}
    if library:
        others["flashinfer"] = lambda: library.sampling.sampling_from_logits(logits)
    compare(bench, f"sample {rows} float32", ours, others, logits.numel() * 4)


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
