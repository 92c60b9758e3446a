"""What the GPU does during decode steps of the engine's own loop, and where it waits: `python -m raysgl.bench.trace`.

A Llama-3.1-8B without weights files (random ones) decodes a batch; torch's profiler records some steps. Printed: the share of time in
which the GPU ran nothing, between steps and inside of them, time by kernel, and one step kernel by kernel with the gap before each.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import socket
import statistics
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from raysgl.config import EngineConfig
    from raysgl.engine.plan import StepPlan
    from raysgl.engine.runner import ModelRunner

LLAMA_8B = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 128256,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}
WARM_STEPS = 40
"""Before the recording; a size that has no graph gets one after 32 steps."""


@dataclass(frozen=True)
class Activity:
    """Something that the GPU did, a kernel or a copy: begin and end in microseconds."""

    name: str
    begin: float
    end: float


@dataclass
class Timeline:
    """Steps of activities in order, and the microseconds before each in which nothing ran."""

    steps: list[list[tuple[Activity, float]]]

    @property
    def period(self) -> float:
        """Microseconds from a step's begin to the next one's, median."""
        begins = [step[0][0].begin for step in self.steps]
        return statistics.median(later - earlier for earlier, later in itertools.pairwise(begins))

    @property
    def between(self) -> float:
        """Microseconds of nothing before a step's first activity, median."""
        return statistics.median(step[0][1] for step in self.steps[1:])

    @property
    def inside(self) -> float:
        """Microseconds of nothing between a step's activities, median of their sums."""
        return statistics.median(sum(gap for _, gap in step[1:]) for step in self.steps)

    def by_name(self) -> list[tuple[str, int, float]]:
        """(name, times a step, microseconds a step), the largest first."""
        times: Counter[str] = Counter()
        total: defaultdict[str, float] = defaultdict(float)
        for step in self.steps:
            for activity, _ in step:
                times[activity.name] += 1
                total[activity.name] += activity.end - activity.begin
        count = len(self.steps)
        rows = [(name, round(times[name] / count), total[name] / count) for name in times]
        return sorted(rows, key=lambda row: -row[2])


def split(activities: Sequence[Activity], steps: int) -> Timeline:
    """Cut a recording of about so many steps where a step ends: after what occurs once a step and is followed by the longest gaps.

    Raises ValueError where nothing occurs about once a step.
    """
    activities = sorted(activities, key=lambda activity: activity.begin)
    gaps, done = [0.0], activities[0].end
    for activity in activities[1:]:
        gaps.append(max(0.0, activity.begin - done))
        done = max(done, activity.end)
    counts = Counter(activity.name for activity in activities)
    once = {name for name, count in counts.items() if abs(count - steps) <= 1}
    if not once:
        raise ValueError(f"nothing ran about {steps} times in {len(activities)} activities")
    after: defaultdict[str, float] = defaultdict(float)
    for activity, gap in zip(activities, gaps[1:], strict=False):
        after[activity.name] += gap
    last = max(once, key=lambda name: after[name])
    cut: list[list[tuple[Activity, float]]] = [[]]
    for activity, gap in zip(activities, gaps, strict=True):
        cut[-1].append((activity, gap))
        if activity.name == last:
            cut.append([])
    # The first is the rest of a step; what follows the last end is no whole one either.
    return Timeline(cut[1:-1])


@dataclass(frozen=True)
class Settings:
    """What decodes what. dependent_launch: with PDL, whatever the table of products says."""

    batch: int
    prompt: int
    steps: int
    path: str
    tp_size: int
    dependent_launch: bool
    port: int


def make_runner(settings: Settings, rank: int) -> tuple[EngineConfig, ModelRunner]:
    """One rank's. Each process sees one GPU, as under Ray."""
    os.environ["CUDA_VISIBLE_DEVICES"] = str(rank)
    import torch

    from raysgl import distributed, models
    from raysgl.config import EngineConfig
    from raysgl.engine.runner import ModelRunner
    from raysgl.kernels.triton import runtime

    size = settings.tp_size
    config = EngineConfig(model_path=settings.path, load_format="dummy", max_running_requests=settings.batch, tp_size=size)
    if settings.dependent_launch:
        runtime.enable_pdl(True)
    group = distributed.start(rank, size, torch.device("cuda:0"), f"tcp://127.0.0.1:{settings.port}")
    return config, ModelRunner(config, models.resolve(settings.path, load_format="dummy"), rank, group, "cuda:0")


def follow(settings: Settings, rank: int, plans: Any) -> None:
    """Another rank than 0: launch what it is told, until it is told None."""
    _, runner = make_runner(settings, rank)
    while (plan := plans.get()) is not None:
        runner.launch(plan)


def record(settings: Settings) -> list[Activity]:
    """Decode with the engine's loop, and return what rank 0's GPU did in `steps` steps after the warm-up."""
    import torch
    import torch.multiprocessing as mp
    from torch.profiler import ProfilerActivity, profile

    from raysgl.bench.step import decoding_loop

    context = mp.get_context("spawn")
    queues = [context.Queue() for _ in range(1, settings.tp_size)]
    others = [context.Process(target=follow, args=(settings, rank, plans)) for rank, plans in enumerate(queues, 1)]
    for other in others:
        other.start()
    config, runner = make_runner(settings, 0)

    def broadcast(plan: StepPlan | None) -> None:
        for plans in queues:
            plans.put(plan)

    steps, tokens = settings.steps, WARM_STEPS + 2 * settings.steps
    loop = decoding_loop(runner, config, runner, settings.batch, settings.prompt, tokens, True, broadcast)

    def run_to(progress: int) -> None:
        while loop.progress < progress and not loop.idle:
            loop.run_once()

    loop.run_once()
    run_to(loop.progress + WARM_STEPS + steps // 2)
    with profile(activities=[ProfilerActivity.CUDA]) as recording:
        run_to(loop.progress + steps)
        torch.cuda.synchronize()
    while not loop.idle:
        loop.run_once()
    broadcast(None)
    for other in others:
        other.join(60)
    device = torch.autograd.DeviceType.CUDA
    return [
        Activity(event.name, float(event.time_range.start), float(event.time_range.end))
        for event in recording.events() or []
        if event.device_type == device
    ]


def show(timeline: Timeline, batch: int, device: str) -> None:
    period, between, inside = timeline.period, timeline.between, timeline.inside
    print(f"{device}: {len(timeline.steps)} decode steps of {batch} rows, {period:.0f} us each")
    print(
        f"idle between steps {between:.1f} us ({between / period:.1%}), inside of them {inside:.1f} us ({inside / period:.1%})\n"
    )
    print(f"{'us a step':>10} {'times':>6}  kernel")
    for name, times, took in timeline.by_name()[:25]:
        print(f"{took:10.1f} {times:6d}  {name[:100]}")
    step = timeline.steps[len(timeline.steps) // 2]
    begin = step[0][0].begin
    print(f"\n{'start us':>10} {'took':>8} {'gap':>8}  one step (gap: nothing ran before it for so long)")
    for activity, gap in step:
        print(f"{activity.begin - begin:10.1f} {activity.end - activity.begin:8.1f} {gap:8.1f}  {activity.name[:90]}")


def main(arguments: list[str] | None = None) -> int:
    """0: printed. 1: the recording made no sense. 2: no GPU."""
    import torch

    parser = argparse.ArgumentParser(prog="python -m raysgl.bench.trace", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--prompt", type=int, default=512, help="tokens of each prompt")
    parser.add_argument("--steps", type=int, default=24, help="decode steps to record")
    parser.add_argument("--model-path", help="another model's folder; its weights are random too")
    parser.add_argument("--tp-size", type=int, default=1, help="GPUs; the first one's kernels are shown")
    parser.add_argument("--dependent-launch", action="store_true", help="with PDL")
    parser.add_argument("--json", type=Path, help="write all activities to this file")
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        print("a trace needs an NVIDIA GPU", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as folder, socket.socket() as listener:
        (Path(folder) / "config.json").write_text(json.dumps(LLAMA_8B))
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
        listener.close()
        path = options.model_path or folder
        activities = record(
            Settings(options.batch, options.prompt, options.steps, path, options.tp_size, options.dependent_launch, port)
        )
    if options.json:
        options.json.write_text(json.dumps([[a.name, a.begin, a.end] for a in activities]))
    try:
        timeline = split(activities, options.steps)
    except ValueError as error:
        print(f"{error}; the names: {Counter(activity.name for activity in activities).most_common(10)}", file=sys.stderr)
        return 1
    show(timeline, options.batch, torch.cuda.get_device_name())
    return 0


if __name__ == "__main__":
    sys.exit(main())
