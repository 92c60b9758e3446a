"""What Ray and the processes cost: the same engine in one process with plain uvicorn, and the whole stack, under the same load.

Each side is started, measured and stopped on its own, in the order A B B A ..., so that a machine that slows down does it to both.
"""

from __future__ import annotations

import contextlib
import json
import statistics
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from raysgl.bench import fleet, server
from raysgl.bench.client import Target
from raysgl.bench.dialects import Asking
from raysgl.bench.fleet import Traffic
from raysgl.bench.one_process import HOST, Spec
from raysgl.bench.progress import Stage
from raysgl.bench.prompts import Lengths, Shape, ids, make
from raysgl.bench.report import Report, percentile
from raysgl.config import EngineConfig

MADE_UP = "made-up"
"""As model_path: a model so small that a step costs next to nothing, with SmolLM2's tokenizer."""
TOKENIZER = server.DEFAULT_MODEL
SIZES = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "vocab_size": 49152,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
    "tie_word_embeddings": True,
    "torch_dtype": "float32",
    "bos_token_id": 1,
    "eos_token_id": 2,
}
ONE, STACK = "one process", "whole stack"


@dataclass(frozen=True)
class Load:
    """alone: requests one after the other, for times to first token. streams: points of throughput, each with `per_stream` requests a
    stream. Lengths in tokens."""

    alone: int = 50
    streams: Sequence[int] = (16, 64, 256)
    per_stream: int = 2
    input_len: int = 128
    output_len: int = 64
    processes: int = 2
    rounds: int = 2


@dataclass
class Side:
    """ttfts: seconds to first token of single requests, of all rounds. rates: streams -> output tokens/s of each round."""

    ttfts: list[float]
    rates: dict[int, list[float]]
    errors: list[str]


def run(engine: EngineConfig, load: Load, server_settings: dict, stage: Stage) -> Report:
    """Raises ValueError or `ServerFailed` if something does not start or a request fails."""
    sides = {name: Side([], {count: [] for count in load.streams}, []) for name in (ONE, STACK)}
    with made_up(engine) as settings:
        for turn in range(load.rounds):
            for name in (ONE, STACK) if turn % 2 == 0 else (STACK, ONE):
                what = f"{name}, round {turn + 1} of {load.rounds}"
                stage(f"{what}: starting")
                with one_process(settings) if name == ONE else _whole_stack(settings, server_settings) as target:
                    _measure(target, load, sides[name], turn, lambda text, what=what: stage(f"{what}: {text}"))  # type: ignore[misc]
    report = Report(f"{engine.model_path}: Ray's tax, {load.input_len} tokens in, {load.output_len} out")
    compare(report, sides[ONE], sides[STACK])
    return report


def compare(report: Report, one: Side, stack: Side) -> None:
    """Raises ValueError where a request failed."""
    for side, name in ((one, ONE), (stack, STACK)):
        if side.errors:
            raise ValueError(f"{name}: {side.errors[0]}")
    for label, share in (("p50", 0.5), ("p90", 0.9)):
        alone, whole = (1000 * percentile(side.ttfts, share) for side in (one, stack))
        report.add(f"ttft_{label}_one_ms", f"first token of one stream, {label}: {ONE}", alone, "ms")
        report.add(f"ttft_{label}_stack_ms", f"  {STACK}", whole, "ms")
        report.add(f"ttft_{label}_tax_ms", "  tax", whole - alone, "ms")
    for count, rates in one.rates.items():
        alone, whole = statistics.median(rates), statistics.median(stack.rates[count])
        report.add(f"rate_{count}_one", f"{count} streams: {ONE}", alone, "tokens/s, median of " + _listed(rates))
        report.add(f"rate_{count}_stack", f"  {STACK}", whole, "tokens/s, median of " + _listed(stack.rates[count]))
        report.add(f"rate_{count}_tax", "  tax", 100 * (1 - whole / alone), "%")


def _listed(values: list[float]) -> str:
    return ", ".join(f"{value:,.0f}" for value in values)


def _measure(target: Target, load: Load, side: Side, turn: int, say: Callable[[str], None]) -> None:
    def one_run(count: int, streams: int, output: int, seed: str) -> fleet.Run:
        shape = Shape(count, Lengths.exactly(load.input_len), Lengths.exactly(output))
        found = fleet.run(
            target, Asking("bench"), make(shape, ids, seed), Traffic(concurrency=streams), processes=load.processes
        )
        side.errors += found.errors
        return found

    say("warming up")
    one_run(max(8, *load.streams), max(load.streams), 8, f"warm {turn}")
    say("one stream")
    side.ttfts += [done.ttft for done in one_run(load.alone, 1, 4, f"alone {turn}").good]
    for streams in load.streams:
        say(f"{streams} streams")
        side.rates[streams].append(
            one_run(streams * load.per_stream, streams, load.output_len, f"{streams} {turn}").output_rate
        )


@contextlib.contextmanager
def made_up(engine: EngineConfig) -> Iterator[EngineConfig]:
    """The engine's settings, served as `bench`; of the made-up model, where that is meant."""
    update: dict[str, object] = {"served_model_name": "bench"}
    if engine.model_path != MADE_UP:
        yield engine.model_copy(update=update)
        return
    with tempfile.TemporaryDirectory(prefix="raysgl-bench-") as folder:
        (Path(folder) / "config.json").write_text(json.dumps(SIZES))
        update |= {"model_path": folder, "load_format": "dummy", "tokenizer_path": TOKENIZER}
        yield engine.model_copy(update=update)


@contextlib.contextmanager
def _whole_stack(engine: EngineConfig, settings: dict) -> Iterator[Target]:
    with server.running(engine.model_dump(exclude_unset=True), settings=settings) as running:
        yield running.target


@contextlib.contextmanager
def one_process(engine: EngineConfig) -> Iterator[Target]:
    """The same engine without Ray. Raises `ServerFailed`."""
    port = server.free_port()
    process = subprocess.Popen(
        [sys.executable, "-m", "raysgl.bench.one_process"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdin is not None and process.stdout is not None
    timer = threading.Timer(server.START_LIMIT_S, process.kill)
    try:
        timer.start()
        process.stdin.write(msgspec.json.encode(Spec(engine.model_dump_json(exclude_unset=True), port)).decode() + "\n")
        process.stdin.flush()
        if process.stdout.readline() != "serving\n":
            raise server.ServerFailed(f"the engine in one process did not start (exit code {process.wait()})")
        timer.cancel()
        yield Target("http", HOST, port, "")
    finally:
        timer.cancel()
        server.stop(process)
