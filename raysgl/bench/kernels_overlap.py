"""Can decode rows' attention, bound by memory, hide behind the products of prompts, bound by arithmetic? Both at once on two streams.

A product's kernels fill every SM, and so do attention's: without a partition the two take turns. Attention can be told to leave SMs
to others, cuBLAS to use fewer, and a green context (CUDA driver API, "Green Contexts") gives a stream SMs of its own.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial

import torch
import torch.nn.functional as F

from raysgl.bench.kernels_backends import candidates, make_rows
from raysgl.bench.kernels_timing import Bench, Call
from raysgl.kernels.attention import AttentionLayer, KVCache

LAYERS = 4
TOKENS = 2048
"""Of a step: decode rows and prompts."""
ROWS, CONTEXT = 256, 1152
ATTENTION_SMS = (24, 32, 48, 64)


def _time(run: Callable[[], None], rounds: int = 5) -> float:
    """Microseconds, the median."""
    took = []
    for i in range(rounds + 2):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda.synchronize()
        begin.record()
        run()
        end.record()
        end.synchronize()
        if i >= 2:
            took.append(begin.elapsed_time(end) * 1e3)
    return statistics.median(took)


def _together(products: Call, attention: Call, side: torch.cuda.Stream) -> None:
    main = torch.cuda.current_stream()
    side.wait_stream(main)
    with torch.cuda.stream(side):
        attention()
    products()
    main.wait_stream(side)


@contextmanager
def _fewer_sms_for_products(spared: int):
    before = torch.backends.cuda.preferred_blas_library()
    torch.backends.cuda.preferred_blas_library("cublaslt")
    torch._C._set_sm_carveout_experimental(spared)
    try:
        yield
    finally:
        torch._C._set_sm_carveout_experimental(None)
        torch.backends.cuda.preferred_blas_library(before)


def bench_overlap(bench: Bench, cache: KVCache) -> None:
    """Prints microseconds of products alone, attention alone, both; and how much of attention's time was hidden."""
    makers = candidates(bench, cache)
    if bench.device.type != "cuda" or bench.tiny or "flash_attn" not in makers:
        print("overlap: needs a GPU with FlashAttention 3")
        return
    sizes = bench.sizes
    qkv = (sizes.heads + 2 * sizes.kv_heads) * sizes.dim
    shapes = ((qkv, sizes.hidden), (sizes.hidden, sizes.heads * sizes.dim), (2 * sizes.intermediate, sizes.hidden))
    weights = [bench.random(*shape, scale=0.02) for shape in (*shapes, (sizes.hidden, sizes.intermediate))]
    inputs = {width: bench.random(TOKENS, width) for width in {weight.shape[1] for weight in weights}}
    sms = torch.cuda.get_device_properties(bench.device).multi_processor_count

    def products() -> None:
        for _ in range(LAYERS):
            for weight in weights:
                F.linear(inputs[weight.shape[1]], weight)

    batch = make_rows(bench, [1] * ROWS, [CONTEXT] * ROWS, ROWS)
    q, layer = bench.random(ROWS, sizes.heads, sizes.dim), AttentionLayer(0, sizes.dim**-0.5)

    def attention_on(count: int) -> Call:
        backend = makers["flash_attn"]()
        backend.spared_sms = sms - count  # type: ignore[attr-defined]
        backend.plan(batch)

        def run() -> None:
            for _ in range(LAYERS):
                backend.attend(q, layer)  # type: ignore[attr-defined]

        return run

    alone = _time(products)
    serial = _time(attention_on(sms))
    print(
        f"\noverlap: {LAYERS} layers' products of {TOKENS} tokens {alone:.0f} us, attention {ROWS} x {CONTEXT} {serial:.0f} us, us:"
    )
    _, most = torch.cuda.Stream.priority_range()  # type: ignore[call-arg]
    for count in (sms, *ATTENTION_SMS):
        attention = attention_on(count)
        own = _time(attention)
        ways: dict[str, tuple[torch.cuda.Stream, AbstractContextManager]] = {
            "plain": (torch.cuda.Stream(), nullcontext()),
            "urgent": (torch.cuda.Stream(priority=most), nullcontext()),
        }
        if count < sms:
            ways["urgent, products on fewer SMs"] = (torch.cuda.Stream(priority=most), _fewer_sms_for_products(count))
        for name, (stream, context) in ways.items():
            try:
                with context:
                    products_own = _time(products)
                    both = _time(partial(_together, products, attention, stream))
            except Exception as error:  # noqa: BLE001 - the other ways are worth their time
                print(f"  {name}, {count} SMs: {type(error).__name__}: {str(error)[:120]}")
                continue
            hidden = (alone + serial - both) / serial
            print(
                f"  attention on {count:3d} SMs {own:7.0f}, {name:30s} products {products_own:7.0f}, both {both:7.0f}, hidden {hidden:5.0%}",
                flush=True,
            )
            bench.figures.append({"overlap": name, "sms": count, "attention": own, "products": products_own, "both": both})
    bench.figures.append({"overlap": "serial", "attention": serial, "products": alone})
    try:
        _green(bench, products, makers["flash_attn"], batch, q, layer, sms, alone + serial, serial)
    except Exception as error:  # noqa: BLE001 - new in torch, and may be missing
        print(f"  green contexts: {type(error).__name__}: {str(error)[:160]}")


def _green(bench, products, make, batch, q, layer, sms: int, serial: float, attention_alone: float) -> None:
    """Attention in a green context of some SMs, products in the rest (by their number: cuBLAS is told to leave as many)."""
    from torch.cuda.green_contexts import GreenContext

    for count in ATTENTION_SMS:
        context = GreenContext.create(num_sms=count, device_id=torch.cuda.current_device())
        if hasattr(context, "Stream"):
            stream = context.Stream()
        else:  # torch 2.11 makes the context's stream the current one
            context.set_context()  # type: ignore[attr-defined]
            stream = torch.cuda.current_stream()
            context.pop_context()  # type: ignore[attr-defined]
        backend = make()
        backend.spared_sms = sms - count
        backend.plan(batch)

        def attention(backend=backend) -> None:
            for _ in range(LAYERS):
                backend.attend(q, layer)

        with _fewer_sms_for_products(count):
            both = _time(partial(_together, products, attention, stream))
        print(f"  green context of {count} SMs: both {both:7.0f}, hidden {(serial - both) / attention_alone:5.0%}", flush=True)
        bench.figures.append({"overlap": "green", "sms": count, "both": both})
