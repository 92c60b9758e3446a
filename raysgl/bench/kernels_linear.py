"""Linear layers of few tokens, and whole decode layers made of them: ours against cuBLAS and kernels between."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F

from raysgl.bench.kernels_attention import make_batch
from raysgl.bench.kernels_timing import Bench
from raysgl.kernels import activation, norm
from raysgl.kernels.attention import AttentionLayer, KVCache
from raysgl.kernels.triton import runtime
from raysgl.kernels.triton.activation import silu_mul
from raysgl.kernels.triton.backend import TritonBackend
from raysgl.kernels.triton.gemv import GemvConfig
from raysgl.kernels.triton.linear import Config, skinny_linear
from raysgl.kernels.triton.norm import add_rms_norm, rms_norm
from raysgl.kernels.triton.rotary import rotary_table, rotate_and_write
from raysgl.kernels.triton.skinny import SkinnyConfig


@dataclass
class Linear:
    """One of the model's linear layers, with copies of its weight enough to keep the cache cold."""

    name: str
    weights: list[torch.Tensor]
    norm_I: torch.Tensor | None
    silu: bool
    residual: bool

    @property
    def num_bytes(self) -> int:
        return self.weights[0].numel() * 2


def linears(bench: Bench) -> Iterator[Linear]:
    for name, (rows, inputs, has_norm, has_silu, has_residual) in bench.sizes.linears.items():
        weights = [bench.random(rows, inputs, scale=inputs**-0.5) for _ in range(bench.copies(rows * inputs * 2))]
        yield Linear(name, weights, bench.random(inputs).add_(1.0) if has_norm else None, has_silu, has_residual)


def library_linear(x: torch.Tensor, weight: torch.Tensor, layer: Linear, stream: torch.Tensor | None) -> torch.Tensor:
    """The same by cuBLAS and our row kernels."""
    if stream is not None:
        return torch.addmm(stream, x, weight.t(), out=stream)
    out = F.linear(x if layer.norm_I is None else rms_norm(x, layer.norm_I, 1e-5), weight)
    return silu_mul(out) if layer.silu else out


def bench_linears(bench: Bench) -> None:
    print(
        "\nlinear layers, us: ours with norm, SiLU-mul, residual folded in | cuBLAS and these | cuBLAS alone; TB/s ours / best"
    )
    for layer in linears(bench):
        for tokens in bench.sizes.tokens:
            bench_linear(bench, layer, tokens)


def bench_linear(bench: Bench, layer: Linear, tokens: int) -> None:
    x = bench.random(tokens, layer.weights[0].shape[1])
    wide = x.float() if layer.norm_I is None else norm.rms_norm(x.float(), layer.norm_I.float(), 1e-5)
    want = F.linear(wide, layer.weights[0].float())
    want = activation.silu_mul(want) if layer.silu else want
    stream = torch.zeros_like(want, dtype=x.dtype) if layer.residual else None
    ours = partial(skinny_linear, x, norm_I=layer.norm_I, silu_mul=layer.silu)
    bench.check(
        f"linear {layer.name} {tokens}", ours(layer.weights[0], residual_TO=None if stream is None else stream.clone()), want
    )
    times = {
        "ours": bench.time([partial(ours, w, residual_TO=stream) for w in layer.weights]),
        "cublas+": bench.time([partial(library_linear, x, w, layer, stream) for w in layer.weights]),
        "cublas": bench.time([partial(F.linear, x, w) for w in layer.weights]),
    }
    bench.report(f"{layer.name} {tokens}", times, layer.num_bytes)


def tune_linears(bench: Bench) -> None:
    """Every product of the model at each number of tokens of `linear_table`: the best configuration, or the libraries' kernels."""
    print("\nlinear layers: cuBLAS with kernels for what stands before and after it, and the best configurations")
    gemv = [
        GemvConfig(o, i, w, s)
        for o, i, w, s in ((4, 512, 4, 1), (8, 512, 4, 1), (4, 512, 4, 4), (8, 512, 4, 4), (8, 512, 8, 4))
    ]
    gemv += [GemvConfig(4, 1024, 4, 3), GemvConfig(2, 1024, 4, 4), GemvConfig(2, 512, 2, 6), GemvConfig(16, 256, 4, 4)]
    gemv += [GemvConfig(4, 1024, 8, 1), GemvConfig(2, 2048, 8, 1), GemvConfig(1, 2048, 4, 3)]
    skinny = [SkinnyConfig(64, i, s, 4, n) for i, n in ((64, 6), (128, 4), (256, 3)) for s in (1, 2, 4, 8)]
    for layer in linears(bench):
        rows, inputs = layer.weights[0].shape
        for tokens in bench.sizes.tuned:
            x = bench.random(tokens, inputs)
            stream = bench.random(tokens, rows) if layer.residual else None
            library = partial(library_linear, x, layer=layer, stream=stream)
            cublas = bench.time([partial(library, w) for w in layer.weights])
            found: list[tuple[float, Config]] = []
            for config in gemv if tokens == 1 else skinny:
                if isinstance(config, SkinnyConfig) and config.splits > 1 and inputs // config.splits < 512:
                    continue
                ours = partial(skinny_linear, x, norm_I=layer.norm_I, silu_mul=layer.silu, residual_TO=stream, config=config)
                try:
                    found.append((bench.time([partial(ours, w) for w in layer.weights]), config))
                except Exception as error:  # noqa: BLE001 - out of shared memory, say: a finding, not a failure
                    print(f"  {config}: {type(error).__name__}")
            found.sort(key=lambda pair: pair[0])
            print(
                f"{layer.name:8s} {tokens:2d} {cublas:8.1f} us {layer.num_bytes / cublas / 1e6:5.2f} TB/s  cuBLAS", flush=True
            )
            for took, config in found[:2]:
                print(
                    f"{layer.name:8s} {tokens:2d} {took:8.1f} us {layer.num_bytes / took / 1e6:5.2f} TB/s  {config}", flush=True
                )
            figure = {"tune": layer.name, "cublas_us": cublas, "ours_us": [(took, str(config)) for took, config in found]}
            if found and found[0][0] < cublas:
                best = found[0][1]
                got = skinny_linear(x, layer.weights[0], norm_I=layer.norm_I, silu_mul=layer.silu, config=best)
                bench.check(f"{layer.name} {tokens} {best}", got, library_linear(x, layer.weights[0], layer, None))
                kind = "gemv" if isinstance(best, GemvConfig) else "skinny"
                figure["product"] = [tokens, rows, inputs, layer.silu, kind, list(dataclasses.astuple(best))]
            bench.figures.append(figure)


def table_text(bench: Bench, before: str | None = None) -> str:
    """A file of `raysgl.kernels.linear_table`, of what `tune_linears` found, and of other shapes in the file as it was before."""
    dependent_launch = json.loads(before)["dependent_launch"] if before else {}
    tuned = {(tokens, *spec[:2], spec[3]) for spec in bench.sizes.linears.values() for tokens in bench.sizes.tuned}
    kept = [product for product in json.loads(before)["products"] if tuple(product[:4]) not in tuned] if before else []
    found = [figure["product"] for figure in bench.figures if "product" in figure]
    products = [json.dumps(product) for product in kept + found]
    return f'{{"dependent_launch": {json.dumps(dependent_launch)},\n"products": [\n' + ",\n".join(products) + "\n]}\n"


# ---------------------------------------------------------------- decode layers


@dataclass
class Weights:
    """One decode layer's."""

    norm1: torch.Tensor
    qkv: torch.Tensor
    o: torch.Tensor
    norm2: torch.Tensor
    gate_up: torch.Tensor
    down: torch.Tensor


def bench_layers(bench: Bench, cache: KVCache) -> None:
    """Whole layers, since what counts is also what lies between kernels."""
    print(
        "\ndecode layers at context 512, us a layer: all folded, with dependent launch | all folded | cuBLAS and kernels between"
    )
    sizes = bench.sizes
    shapes = {name: spec[:2] for name, spec in sizes.linears.items()}
    layers = [
        Weights(
            bench.random(sizes.hidden).add_(1.0),
            bench.random(*shapes["qkv"], scale=sizes.hidden**-0.5),
            bench.random(*shapes["o"], scale=sizes.hidden**-0.5),
            bench.random(sizes.hidden).add_(1.0),
            bench.random(*shapes["gate_up"], scale=sizes.hidden**-0.5),
            bench.random(*shapes["down"], scale=sizes.intermediate**-0.5),
        )
        for _ in range(sizes.layers)
    ]
    num_bytes = sum(rows * inputs * 2.0 for name, (rows, inputs) in shapes.items() if name != "lm_head")
    for tokens in sizes.tokens:
        bench_layer(bench, cache, layers, tokens, num_bytes)


def bench_layer(bench: Bench, cache: KVCache, layers: list[Weights], tokens: int, num_bytes: float) -> None:
    sizes = bench.sizes
    attention = AttentionLayer(0, sizes.dim**-0.5)
    batch = make_batch(bench, 1, [min(512, 4 * sizes.page_size)] * tokens if bench.tiny else [512] * tokens)
    backend = TritonBackend(cache, sizes.heads)
    backend.plan(batch)
    inv_freq = 1e4 ** -(torch.arange(0, sizes.dim, 2, device=bench.device) / sizes.dim)
    rotary = rotary_table(torch.arange(tokens, device=bench.device), inv_freq)
    start = bench.random(tokens, sizes.hidden)

    def attend(qkv: torch.Tensor) -> torch.Tensor:
        q = rotate_and_write(qkv, cache.keys[0], cache.values[0], batch.write_slots_T, rotary)
        return backend.attend(q, attention).view(len(q), -1)

    def folded() -> torch.Tensor:
        stream = start.clone()
        for w in layers:
            out = attend(skinny_linear(stream, w.qkv, norm_I=w.norm1))
            skinny_linear(out, w.o, residual_TO=stream)
            skinny_linear(skinny_linear(stream, w.gate_up, norm_I=w.norm2, silu_mul=True), w.down, residual_TO=stream)
        return stream

    def library() -> torch.Tensor:
        stream, x = start.clone(), torch.zeros_like(start)
        for w in layers:
            x = add_rms_norm(x, stream, w.norm1, 1e-5)[0]
            x = F.linear(attend(F.linear(x, w.qkv)), w.o)
            x = add_rms_norm(x, stream, w.norm2, 1e-5)[0]
            x = F.linear(silu_mul(F.linear(x, w.gate_up)), w.down)
        return stream.add_(x)

    want, got = library().clone(), folded().clone()
    bench.check(f"layers {tokens}", got, want, tolerance=5e-2)
    times: dict[str, float] = {}
    if bench.device.type == "cuda":
        times["pdl"] = _with_pdl(bench, folded, got, f"layers {tokens} with dependent launch")
    times |= {"folded": bench.time([folded]) / len(layers), "cublas": bench.time([library]) / len(layers)}
    bench.report(f"layer {tokens}", times, num_bytes)


def _with_pdl(bench: Bench, folded: Callable[[], torch.Tensor], want: torch.Tensor, what: str) -> float:
    results: list[torch.Tensor] = []

    def call() -> Any:
        results[:] = [folded()]

    runtime.enable_pdl(True)
    try:
        took = bench.time([call]) / bench.sizes.layers
    finally:
        runtime.enable_pdl(False)
    bench.check(what, results[0], want, tolerance=1e-2)  # the captured graph's result, after its last replay
    return took
