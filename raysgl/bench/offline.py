"""The engine alone: a batch's throughput (`raysgl bench offline`), and latencies by batch size and lengths (`raysgl bench latency`)."""

from __future__ import annotations

import asyncio
import itertools
import random
import statistics
from dataclasses import dataclass
from pathlib import Path

from raysgl.bench import sharegpt
from raysgl.bench.local_engine import LocalEngine, Work
from raysgl.bench.progress import Stage
from raysgl.bench.prompts import Lengths, Shape, make
from raysgl.bench.report import Report
from raysgl.config import EngineConfig


@dataclass(frozen=True)
class Batch:
    """What `offline` runs: `shape`'s prompts, or those of a ShareGPT-style file; output: of the file's answers, instead of the
    real ones' length."""

    shape: Shape
    dataset: Path | None = None
    output: Lengths | None = None
    seed: int = 1


def throughput(config: EngineConfig, batch: Batch, stage: Stage) -> Report:
    """Every request is there from the start. Raises ValueError or ModelError."""
    stage("loading the model")
    engine = LocalEngine(config, stage)
    work = _work(engine, batch)
    stage("warming up")
    engine.run([(engine.draw(random.Random(0), 32), 8)])
    stage("running", 0, len(work))
    found, seconds = engine.run(work, lambda done: stage("running", done, len(work)))
    prompt, output = sum(one.prompt_tokens for one in found), sum(one.output_tokens for one in found)
    report = Report(f"{config.model_path} on {engine.device}, {len(work)} requests in one batch, without HTTP and Ray")
    report.add("load_s", "loading the model", engine.load_s, "s")
    report.add("kv_tokens", "KV cache", engine.kv_tokens, "tokens")
    report.add("seconds", "duration", seconds, "s")
    report.add("request_rate", "throughput", len(work) / seconds, "requests/s")
    report.add("output_rate", "throughput", output / seconds, "output tokens/s")
    report.add("input_rate", "throughput", prompt / seconds, "prompt tokens/s")
    report.add("prompt_tokens", "prompt tokens", prompt)
    report.add("cached_tokens", "of them cached", sum(one.cached_tokens for one in found))
    report.add("output_tokens", "output tokens", output)
    return report


def latency(
    config: EngineConfig, batches: list[int], inputs: list[int], outputs: list[int], rounds: int, stage: Stage
) -> Report:
    """Every batch size with every pair of lengths: medians of `rounds`, after one that does not count. Raises ValueError."""
    stage("loading the model")
    engine = LocalEngine(config, stage)
    source = random.Random(1)
    cases = list(itertools.product(batches, inputs, outputs))
    points, rows = [], []
    for number, (size, given, wanted) in enumerate(cases):
        measured = []
        for turn in range(rounds + 1):
            stage(f"batch {size}, {given} in, {wanted} out", number * (rounds + 1) + turn, len(cases) * (rounds + 1))
            found, seconds = engine.run([(engine.draw(source, given), wanted) for _ in range(size)])
            first = max(one.first for one in found)
            step = (max(one.last for one in found) - first) / max(1, wanted - 1)
            measured.append((seconds, first, step))
        seconds, first, step = (statistics.median(values) for values in zip(*measured[1:], strict=True))
        point = {
            "batch": size,
            "input_len": given,
            "output_len": wanted,
            "e2e_ms": 1000 * seconds,
            "prefill_ms": 1000 * first,
            "step_ms": 1000 * step,
            "input_rate": size * given / first,
            "output_rate": size / step if wanted > 1 else 0.0,
        }
        points.append(point)
        rows.append([f"{value:,.2f}" if isinstance(value, float) else str(value) for value in point.values()])
    report = Report(f"{config.model_path} on {engine.device}, batches without HTTP and Ray, medians of {rounds}")
    columns = ["batch", "in", "out", "whole, ms", "first tokens, ms", "step, ms", "prefill tok/s", "decode tok/s"]
    report.table(columns, rows, "first tokens: of all sequences; step: one more token of each")
    report.data["points"] = points
    return report


def _work(engine: LocalEngine, batch: Batch) -> list[Work]:
    if batch.dataset is None:
        talks = make(batch.shape, engine.draw, f"offline-{batch.seed}")
        return [(talk[0].part, talk[0].output) for talk in talks]  # type: ignore[misc]
    encode = sharegpt.encoder(engine.checkpoint.folder)

    async def count(text: str) -> int:
        return len(encode(text))

    choice = sharegpt.Choice(batch.shape.count, output=batch.output, context=engine.limits.context_length)
    talks = asyncio.run(sharegpt.choose(sharegpt.read(batch.dataset), choice, count, str(batch.seed)))
    return [(encode(talk[0].part), talk[0].output) for talk in talks]  # type: ignore[arg-type]
