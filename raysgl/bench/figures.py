"""From what a run's requests took to figures: throughput, percentiles, goodput."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from raysgl.bench.dialects import Completion
from raysgl.bench.load import Run
from raysgl.bench.report import Report, percentile

SHARES = {"p50": 0.5, "p90": 0.9, "p99": 0.99}
TIMES = {
    "ttft": "time to first token",
    "tpot": "time per output token",
    "itl": "between events",
    "e2e": "whole request",
}


@dataclass(frozen=True)
class Targets:
    """What a good request keeps to, milliseconds; None: anything will do."""

    ttft: float | None = None
    tpot: float | None = None
    e2e: float | None = None

    def __bool__(self) -> bool:
        return (self.ttft, self.tpot, self.e2e) != (None, None, None)

    def met(self, done: Completion) -> bool:
        took = (self.ttft, done.ttft), (self.tpot, done.tpot), (self.e2e, done.e2e)
        return all(limit is None or 1000 * seconds <= limit for limit, seconds in took)


def figures(run: Run, targets: Targets, streamed: bool = True) -> dict[str, Any]:
    """Figures by stable names: rates per second, times in milliseconds; those between tokens only of streams."""
    good, seconds = run.good, run.seconds
    prompt, output = sum(c.prompt_tokens for c in good), sum(c.output_tokens for c in good)
    found: dict[str, Any] = {
        "requests": len(run.completions),
        "errors": len(run.errors),
        "short_answers": sum(c.output_tokens < c.asked for c in good),
        "seconds": seconds,
        "request_rate": len(good) / seconds,
        "output_rate": output / seconds,
        "input_rate": prompt / seconds,
        "in_flight": sum(c.e2e for c in good) / seconds,
        "prompt_tokens": prompt,
        "cached_tokens": sum(c.cached_tokens for c in good),
        "output_tokens": output,
    }
    if targets:
        found["goodput"] = sum(targets.met(c) for c in good) / seconds
    for name, values in times(good, streamed).items():
        found[f"{name}_mean_ms"] = 1000 * sum(values) / max(1, len(values))
        for label, share in SHARES.items():
            found[f"{name}_{label}_ms"] = 1000 * percentile(values, share)
    found["client_core"] = run.busiest
    return found


def times(good: list[Completion], streamed: bool) -> dict[str, list[float]]:
    """Seconds, by names in `TIMES`. An answer of one token has no time per output token."""
    if not streamed:
        return {"e2e": [c.e2e for c in good]}
    return {
        "ttft": [c.ttft for c in good],
        "tpot": [c.tpot for c in good if c.output_tokens > 1],
        "itl": [after - before for c in good for before, after in zip(c.arrivals, c.arrivals[1:], strict=False)],
        "e2e": [c.e2e for c in good],
    }


def add_one(report: Report, found: dict[str, Any], first_error: str) -> None:
    """One run: its throughput as rows, its times as a table of percentiles."""
    for key, what, note in (
        ("requests", "requests", ""),
        ("errors", "errors", first_error[:120]),
        ("short_answers", "answers shorter than asked", ""),
        ("seconds", "duration", "s"),
        ("request_rate", "throughput", "requests/s"),
        ("output_rate", "throughput", "output tokens/s"),
        ("input_rate", "throughput", "prompt tokens/s"),
        ("in_flight", "in flight, on average", "requests"),
        ("goodput", "within the targets", "requests/s"),
        ("prompt_tokens", "prompt tokens", ""),
        ("cached_tokens", "of them cached", ""),
        ("output_tokens", "output tokens", ""),
        ("client_core", "busiest client process", "of a core"),
    ):
        if key in found:
            report.add(key, what, found[key], note)
    kinds = [kind for kind in TIMES if f"{kind}_mean_ms" in found]
    labels = ["mean", *SHARES]
    rows = [[TIMES[kind], *(f"{found[f'{kind}_{label}_ms']:,.2f}" for label in labels)] for kind in kinds]
    report.table(["ms", *labels], rows)
    report.data.update(found)


def add_points(report: Report, points: list[dict[str, Any]]) -> None:
    """Several runs, each with its `load`: a line each."""
    columns = {
        "load": "load",
        "request_rate": "req/s",
        "output_rate": "out tok/s",
        "input_rate": "in tok/s",
        "goodput": "goodput",
        "ttft_p50_ms": "TTFT p50",
        "ttft_p99_ms": "p99",
        "tpot_p50_ms": "TPOT p50",
        "tpot_p99_ms": "p99",
        "itl_p99_ms": "ITL p99",
        "e2e_p50_ms": "E2E p50",
        "e2e_p99_ms": "p99",
        "client_core": "client",
        "errors": "errors",
    }
    shown = {key: name for key, name in columns.items() if key in points[0]}
    rows = [[_short(point[key]) for key in shown] for point in points]
    report.table(list(shown.values()), rows, "times in ms, goodput in requests/s, client: busiest process, of a core")


def _short(value: object) -> str:
    if not isinstance(value, float):
        return str(value)
    return f"{value:,.2f}" if value < 100 else f"{value:,.0f}"
