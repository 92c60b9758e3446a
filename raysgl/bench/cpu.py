"""raysgl through HTTP against transformers `generate` on the same cores, in one run, as ratios.

One thing runs at a time: transformers in its own process, `raysgl serve`, transformers again, then `raysgl serve` without radix cache.
The ratios are to transformers before and after, since a machine's speed may change in between.
"""

from __future__ import annotations

import asyncio
import statistics
from dataclasses import dataclass

from raysgl.bench import baseline, load, server
from raysgl.bench.dialects import Asking
from raysgl.bench.progress import Stage
from raysgl.bench.report import Report

GOALS = {"one_stream_ratio": 0.9, "many_streams_ratio": 4.0, "shared_prefix_ratio": 5.0}


@dataclass
class Settings:
    """Lengths are in tokens."""

    model_path: str = server.DEFAULT_MODEL
    threads: int = 2
    input_len: int = 64
    output_len: int = 128
    repeats: int = 3
    streams: int = 16
    prefix_len: int = 2000
    question_len: int = 16
    answer_len: int = 4
    questions: int = 16


def run(settings: Settings, stage: Stage) -> Report:
    """Measure everything; `stage` hears what is being done. Raises `ServerFailed`, `RuntimeError` or `HTTPFailure`."""
    from raysgl.models.checkpoint import resolve

    report = Report("raysgl against transformers on this CPU")
    report.data["settings"] = vars(settings)
    stage("transformers generate, one sequence")
    checkpoint = resolve(settings.model_path)
    path = checkpoint.files[0] if checkpoint.weights == "gguf" else checkpoint.folder
    job = baseline.Job(str(path), settings.threads, settings.repeats, settings.input_len, settings.output_len)
    seconds = baseline.measure(job)

    engine = {
        "model_path": settings.model_path,
        "served_model_name": "bench",
        "device": "cpu",
        "dtype": "float32",
        "cpu_threads": settings.threads,
        "max_running_requests": max(32, settings.streams),
    }
    stage("starting raysgl serve")
    with server.running(engine) as running:
        report.add("ready_s", "raysgl serve, start to ready", running.ready_s, "s")
        stage("one stream through HTTP")
        one = asyncio.run(_streams(running.target, settings, settings.repeats, 1, seed=1))
        rate = statistics.median(settings.output_len / (c.ended - c.started) for c in one.good)
        report.add("one_stream_rate", "raysgl, one stream", rate, "tokens/s")
        report.add("one_stream_tpot_ms", "time per token, one stream", 1000 * statistics.median(c.tpot for c in one.good), "ms")
        stage(f"{settings.streams} streams through HTTP")
        many = asyncio.run(_streams(running.target, settings, settings.streams, settings.streams, seed=2))
        report.add("many_streams_rate", f"raysgl, {settings.streams} streams", many.output_rate, "tokens/s")
        stage("a shared prefix, with radix cache")
        cached = asyncio.run(_questions(running.target, settings))
    stage("transformers generate again")
    reference = settings.output_len / statistics.median(seconds + baseline.measure(job))
    report.add("transformers_rate", "transformers generate, one sequence", reference, "tokens/s")
    _ratio(report, "one_stream_ratio", "one stream / transformers", rate / reference)
    _ratio(report, "many_streams_ratio", f"{settings.streams} streams / transformers", many.output_rate / reference)
    stage("starting raysgl serve without radix cache")
    with server.running({**engine, "disable_radix_cache": True}) as running:
        stage("a shared prefix, without radix cache")
        uncached = asyncio.run(_questions(running.target, settings))
    asked = f"{settings.prefix_len}-token prefix asked {settings.questions} times"
    report.add("shared_prefix_s", f"{asked}, radix cache", cached.seconds, "s")
    report.add("no_cache_s", f"{asked}, none", uncached.seconds, "s")
    _ratio(report, "shared_prefix_ratio", "without / with radix cache", uncached.seconds / cached.seconds)
    return report


def _ratio(report: Report, key: str, what: str, value: float) -> None:
    goal = GOALS[key]
    report.add(key, what, value, f"goal: at least {goal:g}: {'met' if value >= goal else 'NOT met'}")


async def _streams(target: load.Target, settings: Settings, count: int, concurrency: int, seed: int) -> load.Run:
    """Different prompts, after a short warm-up with others."""
    prompts = await load.make_prompts(target, "bench", count + 1, settings.input_len, seed=seed)
    await load.complete(target, Asking("bench"), prompts.pop(), 8)
    return _checked(await load.run(target, Asking("bench"), prompts, settings.output_len, concurrency))


async def _questions(target: load.Target, settings: Settings) -> load.Run:
    """The same prefix with different questions, one after the other."""
    length = settings.prefix_len + settings.question_len
    prompts = await load.make_prompts(target, "bench", settings.questions, length, shared=settings.prefix_len, seed=3)
    return _checked(await load.run(target, Asking("bench"), prompts, settings.answer_len, 1))


def _checked(run: load.Run) -> load.Run:
    if run.errors:
        raise RuntimeError(f"{len(run.errors)} of {len(run.completions)} requests failed: {run.errors[0]}")
    return run
