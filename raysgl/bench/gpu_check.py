"""All that needs a GPU, in one go: `python -m raysgl.bench.gpu_check`, with everything it prints in one folder.

Parts run one after another, each in a process of its own and with a time limit, so that one which fails or hangs costs no other.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

KERNELS = ("-m", "raysgl.bench.kernels")
PARTS: dict[str, tuple[tuple[str, ...], float]] = {
    "tests": (("-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider"), 580),
    "sampling": ((*KERNELS, "sampling", "--json", "{out}/sampling.json"), 120),
    "layers": ((*KERNELS, "layers", "--json", "{out}/layers.json"), 240),
    "tune": ((*KERNELS, "linears", "--tune", "--json", "{out}/tune.json", "--table", "{out}/linear_table.json"), 580),
    "backends": (
        (*KERNELS, "backends", "--json", "{out}/backends.json", "--attention-table", "{out}/attention_table.json"),
        120,
    ),
    "overlap": ((*KERNELS, "overlap", "--json", "{out}/overlap.json"), 120),
    "tune_decode": ((*KERNELS, "attention", "--tune", "--json", "{out}/tune_decode.json"), 240),
    "attention": ((*KERNELS, "attention", "cascade", "--json", "{out}/attention.json"), 300),
    "rows": ((*KERNELS, "rows", "--json", "{out}/rows.json"), 120),
    "trace": (("-m", "raysgl.bench.trace", "--json", "{out}/trace.json"), 180),
    "trace1": (("-m", "raysgl.bench.trace", "--batch", "1", "--prompt", "128", "--json", "{out}/trace1.json"), 180),
}
"""name -> (arguments of Python, seconds it may take)."""
TWO_GPUS: dict[str, tuple[tuple[str, ...], float]] = {
    "all_reduce": (("-m", "raysgl.bench.all_reduce", "--json", "{out}/all_reduce.json"), 120),
    "tp_tests": (("-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", "tests/engine/test_runner_tp.py"), 400),
    "tp_tune": (
        (*KERNELS, "linears", "--tune", "--tp-size", "2", "--json", "{out}/tp_tune.json", "--table", "{out}/linear_table.json"),
        300,
    ),
}
"""Parts that run by name only."""
TAIL = 12
"""Lines of each part that are shown; all are in its log."""


def run(name: str, out: Path) -> str:
    """Run a part, its output in `out`/name.log. Returns what became of it."""
    arguments, limit = (PARTS | TWO_GPUS)[name]
    log, begin = out / f"{name}.log", time.perf_counter()
    with log.open("w") as file:
        try:
            command = [sys.executable, *(argument.format(out=out) for argument in arguments)]
            code = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, timeout=limit, check=False).returncode
            ending = "passed" if code == 0 else f"exit status {code}"
        except subprocess.TimeoutExpired:
            ending = f"ended after its limit of {limit:.0f} s"
    print(f"\n== {name}", *log.read_text(errors="replace").splitlines()[-TAIL:], sep="\n", flush=True)
    return f"{ending}, {time.perf_counter() - begin:.0f} s"


def main(arguments: list[str] | None = None) -> int:
    """0: every part passed."""
    parser = argparse.ArgumentParser(prog="python -m raysgl.bench.gpu_check", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "parts", nargs="*", help=f"of {', '.join(PARTS)} (by default all), and with two GPUs {', '.join(TWO_GPUS)}"
    )
    parser.add_argument(
        "--out", type=Path, default=Path(os.environ.get("OUT", "gpu-check")), help="folder; default: $OUT, or gpu-check"
    )
    options = parser.parse_args(arguments)
    unknown = set(options.parts) - set(PARTS) - set(TWO_GPUS)
    if unknown:
        parser.error(f"no such part: {', '.join(sorted(unknown))}; there are {', '.join(PARTS | TWO_GPUS)}")
    options.out.mkdir(parents=True, exist_ok=True)
    endings = {name: run(name, options.out) for name in options.parts or PARTS}
    summary = "\n".join(f"{name:10s} {ending}" for name, ending in endings.items())
    (options.out / "summary.txt").write_text(summary + "\n")
    print(f"\n{summary}\n(in {options.out})")
    return 0 if all(ending.startswith("passed") for ending in endings.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
