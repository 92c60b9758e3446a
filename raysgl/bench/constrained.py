"""What constrained decoding costs: the same load on a running server, free and under a JSON schema, in turns."""

from __future__ import annotations

import statistics
from dataclasses import dataclass

from raysgl.bench import load
from raysgl.bench.client import Target
from raysgl.bench.dialects import Asking
from raysgl.bench.progress import Stage
from raysgl.bench.report import Report, percentile

ITEM = {
    "type": "object",
    "properties": {
        "id": {"type": "integer", "minimum": 0, "maximum": 99999},
        "name": {"type": "string", "maxLength": 24},
        "tags": {"type": "array", "items": {"enum": ["red", "green", "blue"]}, "maxItems": 3},
    },
    "required": ["id", "name", "tags"],
    "additionalProperties": False,
}
SCHEMA = {"type": "array", "items": ITEM, "minItems": 100_000}
"""Never ends, but each of its parts does, also where a model with random weights writes."""


@dataclass(frozen=True)
class Settings:
    """`rounds` of each kind, `requests` in each, `batch` of them at a time."""

    batch: int
    input_len: int
    output_len: int
    rounds: int
    temperature: float


async def run(url: str, model: str | None, settings: Settings, stage: Stage) -> Report:
    """Output rates of both, and their ratio. ValueError where requests fail or end early."""
    target = Target.parse(url)
    name = model or await load.first_model(target)
    bodies = {"free": {}, "constrained": {"json_schema": SCHEMA}}
    rates: dict[str, list[float]] = {kind: [] for kind in bodies}
    gaps: dict[str, list[float]] = {kind: [] for kind in bodies}
    for turn in range(settings.rounds + 1):  # the first is for warming up
        for kind, body in bodies.items():
            stage(f"{kind}, round {turn} of {settings.rounds}")
            prompts = await load.make_prompts(target, name, settings.batch, settings.input_len, seed=turn)
            asking = Asking(name, extra=body | {"temperature": settings.temperature})
            done = await load.run(target, asking, prompts, settings.output_len, settings.batch)
            short = [c for c in done.good if c.output_tokens < settings.output_len]
            if done.errors or short:
                raise ValueError(done.errors[0] if done.errors else f"{len(short)} {kind} answers ended early")
            if turn:
                rates[kind].append(done.output_rate)
                gaps[kind] += [c.tpot for c in done.good]
    report = Report(
        f"{name} at {url}: {settings.batch} at a time, {settings.input_len} tokens in, {settings.output_len} out, "
        f"temperature {settings.temperature:g}, medians of {settings.rounds} rounds"
    )
    medians = {kind: statistics.median(values) for kind, values in rates.items()}
    for kind in bodies:
        report.add(f"{kind}_rate", kind, medians[kind], "output tokens/s")
        report.add(f"{kind}_tpot_p50_ms", f"{kind}, time per output token, p50", 1000 * percentile(gaps[kind], 0.5), "ms")
        report.add(f"{kind}_tpot_p99_ms", f"{kind}, time per output token, p99", 1000 * percentile(gaps[kind], 0.99), "ms")
    report.add("ratio", "constrained / free", medians["constrained"] / medians["free"], "of the throughput")
    return report
