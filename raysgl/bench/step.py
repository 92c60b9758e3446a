"""What a decode step costs besides the model: scheduler, plan, sampling, the hand-over between threads. One engine, no HTTP, no Ray."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

from raysgl import distributed, models
from raysgl.bench.progress import Stage
from raysgl.bench.report import Report
from raysgl.config import EngineConfig
from raysgl.engine.background import BackgroundRunner
from raysgl.engine.loop import EngineLoop
from raysgl.engine.plan import Runner, StepPlan
from raysgl.engine.runner import ModelRunner
from raysgl.engine.scheduler import Scheduler, SchedulerConfig
from raysgl.messages import Submit, ToEngine, pack_ids
from raysgl.sampling.params import SamplingParams


def run(model_path: str, threads: int, batch: int, steps: int, stage: Stage) -> Report:
    """Decode `steps` tokens of `batch` sequences on the CPU; every step's time, and the model's part of it."""
    stage("loading the model")
    config = EngineConfig(model_path=model_path, device="cpu", cpu_threads=threads, max_total_tokens=65536)
    behind = BackgroundRunner(lambda: ModelRunner(config, models.resolve(model_path), 0, distributed.single(), "cpu"))
    runner = behind.runner
    forward = [0.0]
    for part in ("forward", "logits"):
        _time(runner._model, part, forward)
    loop = decoding_loop(behind, config, runner, batch, 64, steps, overlap=False)
    stage(f"decoding {steps} tokens of {batch} sequences")
    totals, beside, last, seen = [], [], time.perf_counter(), 0
    loop.run_once()
    while not loop.idle:
        loop.run_once()
        if loop.progress > seen:
            seen, now = loop.progress, time.perf_counter()
            totals.append(now - last)
            beside.append(now - last - forward[0])
            last, forward[0] = now, 0.0
    totals, beside = totals[8:], beside[8:]  # prefill, and first uses
    report = Report(f"{model_path}, {batch} sequences, {threads} threads: decode steps")
    report.add("step_ms", "a step, median", 1000 * statistics.median(totals), "ms")
    report.add("framework_ms", "beside the model's forward, median", 1000 * statistics.median(beside), "ms")
    report.add("tokens_per_second", "tokens", batch / statistics.median(totals), "tokens/s")
    return report


def decoding_loop(
    launcher: Runner,
    config: EngineConfig,
    runner: ModelRunner,
    batch: int,
    prompt: int,
    steps: int,
    overlap: bool,
    broadcast: Callable[[StepPlan], None] | None = None,
) -> EngineLoop:
    """A loop about to decode `steps` tokens of each of `batch` prompts. launcher: the runner, or what runs it in the background;
    broadcast: tells other ranks."""
    chunk = runner.limits.step_tokens
    scheduler = Scheduler(SchedulerConfig(config.page_size, runner.num_pages, runner.context_length, batch, batch, chunk))
    sampling = SamplingParams(temperature=0, max_new_tokens=steps, ignore_eos=True)
    inbox: list[ToEngine] = [
        Submit(uid, "r", "i", pack_ids([5 + uid, *range(100, 99 + prompt)]), sampling, []) for uid in range(batch)
    ]

    def receive(timeout: float) -> list[ToEngine]:
        messages, inbox[:] = list(inbox), []
        return messages

    return EngineLoop(
        scheduler, launcher, receive, lambda outputs: None, lambda events, load: None, broadcast=broadcast, overlap=overlap
    )


def _time(model: object, name: str, total: list[float]) -> None:
    """Add the time of every call of `model.name` to `total`."""
    inner = getattr(model, name)

    def timed(*args):
        begin = time.perf_counter()
        result = inner(*args)
        total[0] += time.perf_counter() - begin
        return result

    setattr(model, name, timed)
