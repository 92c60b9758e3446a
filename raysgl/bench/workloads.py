"""The workloads of docs/performance.md, against any server.

Prompts are random token ids (fixed seeds), answers have exactly the length asked for, so that every server computes the same
number of tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

from raysgl.bench import fleet
from raysgl.bench.client import Target
from raysgl.bench.dialects import Asking
from raysgl.bench.fleet import Traffic
from raysgl.bench.load import Run
from raysgl.bench.progress import Stage
from raysgl.bench.prompts import Conversation, Draw, Lengths, Shape, ids, make


@dataclass(frozen=True)
class Workload:
    """`shape` of the prompts, and the `traffic` in which they come."""

    name: str
    what: str
    shape: Shape
    traffic: Traffic


def _exact(count: int, own: int, output: int, **more: int) -> Shape:
    return Shape(count, Lengths.exactly(own), Lengths.exactly(output), **more)


WORKLOADS = {
    w.name: w
    for w in (
        Workload("S1", "latency", _exact(8, 128, 256), Traffic(concurrency=1)),
        Workload("S2", "decode-heavy", _exact(512, 128, 512), Traffic(concurrency=256)),
        Workload("S3", "balanced", _exact(512, 1024, 256), Traffic(concurrency=256)),
        Workload("S4", "prefill-heavy", _exact(128, 4096, 16), Traffic(concurrency=64)),
        Workload("S5", "shared prefix", _exact(512, 128, 128, shared=2048, groups=32), Traffic(concurrency=256)),
        Workload("S6", "online", _exact(300, 1024, 128), Traffic(rate=20.0)),
        Workload("S7", "multi-turn", _exact(64, 256, 128, turns=6), Traffic(concurrency=64)),
        Workload("samples", "of one prompt", _exact(512, 1, 256, shared=4095, groups=1), Traffic(concurrency=256)),
    )
}
ALL = tuple(name for name in WORKLOADS if name != "samples")
"""Those that the peers were measured with."""


def prompts(workload: Workload, seed: int, draw: Draw = ids) -> list[Conversation]:
    """Workloads draw different ones, so that none finds another's in the cache."""
    return make(workload.shape, draw, f"{workload.name}-{seed}")


def run(target: Target, asking: Asking, workload: Workload, draw: Draw, processes: int, seed: int, stage: Stage) -> Run:
    """One workload."""
    total, title = workload.shape.requests, f"{workload.name} {workload.what}"
    stage(title, 0, total)
    return fleet.run(
        target,
        asking,
        prompts(workload, seed, draw),
        workload.traffic,
        processes=processes,
        seed=seed,
        progress=lambda done: stage(title, done, total),
    )
