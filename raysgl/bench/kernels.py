"""Checks raysgl's Triton kernels against torch on this GPU, and times them against the alternatives: `python -m raysgl.bench.kernels`.

Shapes are Llama-3.1-8B's. Times are of CUDA graph replays over rotating inputs larger than the L2 cache (linear layers and
attention), so they have neither launch overhead nor cached weights. FA3 and FlashInfer take part where they can be imported, FlashInfer only
with kernels that are compiled already. `--tune` tries configurations of the skinny products and of decode instead. `--tiny` runs
everything once at toy sizes, also without a GPU under TRITON_INTERPRET=1: a check of this script and of the kernels.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from raysgl.bench.kernels_attention import bench_attention, bench_cascade, make_pool, tune_attention
from raysgl.bench.kernels_backends import attention_table, bench_backends
from raysgl.bench.kernels_linear import bench_layers, bench_linears, table_text, tune_linears
from raysgl.bench.kernels_overlap import bench_overlap
from raysgl.bench.kernels_rows import bench_rows, bench_sampling
from raysgl.bench.kernels_timing import TINY, Bench, Sizes
from raysgl.kernels.attention import KVCache
from raysgl.kernels.triton import runtime

PARTS: dict[str, Callable[[Bench, KVCache], None]] = {
    "layers": bench_layers,
    "linears": lambda bench, cache: bench_linears(bench),
    "backends": bench_backends,
    "overlap": bench_overlap,
    "cascade": bench_cascade,
    "attention": bench_attention,
    "sampling": lambda bench, cache: bench_sampling(bench),
    "rows": bench_rows,
}

MODELS = {"8b": Sizes(), "70b": Sizes(8192, 64, 8, 128, 28672)}

TUNE: dict[str, Callable[[Bench, KVCache], None]] = {
    "linears": lambda bench, cache: tune_linears(bench),
    "attention": tune_attention,
}


def main(arguments: list[str] | None = None) -> int:
    """0: all kernels are right. 1: one was wrong. 2: no GPU."""
    parser = argparse.ArgumentParser(prog="python -m raysgl.bench.kernels", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("parts", nargs="*", help=f"of {', '.join(PARTS)}; all of them by default")
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    parser.add_argument("--tune", action="store_true", help="try configurations instead")
    parser.add_argument(
        "--table", type=Path, help="with --tune linears: add the winners to this file of raysgl/kernels/linear_tables"
    )
    parser.add_argument(
        "--attention-table", type=Path, help="with backends: write the times to this file of raysgl/kernels/attention_tables"
    )
    parser.add_argument("--dependent-launch", action="store_true", help="launch with PDL")
    parser.add_argument("--tp-size", type=int, default=1, help="sizes of one of so many ranks")
    parser.add_argument("--model", choices=MODELS, default="8b", help="Llama 3's sizes")
    parser.add_argument("--tiny", action="store_true", help="toy sizes, once")
    options = parser.parse_args(arguments)
    table = TUNE if options.tune else PARTS
    unknown = set(options.parts) - set(table)
    if unknown:
        parser.error(f"no such part: {', '.join(sorted(unknown))}; there are {', '.join(table)}")
    if not torch.cuda.is_available() and not (options.tiny and runtime.INTERPRETED):
        print("no GPU here; the kernels can be checked with TRITON_INTERPRET=1 and --tiny", file=sys.stderr)
        return 2
    device = torch.device("cpu" if runtime.INTERPRETED else "cuda")
    name = "Triton's interpreter" if runtime.INTERPRETED else torch.cuda.get_device_name()
    print(f"{name}, torch {torch.__version__}; times in microseconds, * the fastest")
    torch.manual_seed(0)
    sizes = (TINY if options.tiny else MODELS[options.model]).of_rank(options.tp_size)
    bench = Bench(sizes, device, options.tiny)
    if options.dependent_launch:
        runtime.enable_pdl(True)
    started = time.perf_counter()
    with torch.inference_mode():
        cache = make_pool(bench)
        for part, run in table.items():
            if not options.parts or part in options.parts:
                begun = time.perf_counter()
                try:
                    run(bench, cache)
                except Exception as error:  # noqa: BLE001 - the other parts are worth their time
                    bench.failed += 1
                    print(f"FAILED {part}: {type(error).__name__}: {error}", flush=True)
                print(f"({part}: {time.perf_counter() - begun:.0f} s)", flush=True)
    checks = [figure for figure in bench.figures if "check" in figure]
    print(f"\n{len(checks)} checks, {bench.failed} failed, {time.perf_counter() - started:.0f} s")
    if options.json:
        options.json.write_text(json.dumps({"device": name, "torch": torch.__version__, "figures": bench.figures}, indent=1))
    if options.table:
        before = options.table.read_text() if options.table.is_file() else None
        options.table.write_text(table_text(bench, before))
    if options.attention_table:
        options.attention_table.write_text(attention_table(bench))
    return 1 if bench.failed else 0


if __name__ == "__main__":
    sys.exit(main())
