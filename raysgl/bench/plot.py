"""Latency over throughput, a curve for each result: what a server gives up of one to get the other."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

PANELS = (
    ("ttft", "time to first token, ms"),
    ("tpot", "time per output token, ms"),
    ("e2e", "whole request, ms"),
)
FORMATS = (".png", ".svg", ".pdf")


def check(path: Path) -> None:
    """ValueError where `draw` could not write such a file, or matplotlib is missing: said before anything is measured."""
    if path.suffix.lower() not in FORMATS:
        raise ValueError(f"--plot {path}: a plot is one of {', '.join(FORMATS)}")
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise ValueError("a plot needs matplotlib: pip install 'raysgl[plot]'") from None


def draw(results: dict[str, list[dict[str, Any]]], path: Path) -> None:
    """results: by name, the points of a sweep (`figures`). Solid lines are medians, dashed ones 99th percentiles."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    panels = [
        panel for panel in PANELS if all(f"{panel[0]}_p50_ms" in point for points in results.values() for point in points)
    ]
    figure, axes = pyplot.subplots(1, len(panels), figsize=(5 * len(panels), 4.2), layout="constrained", squeeze=False)
    for axis, (key, title) in zip(axes[0], panels, strict=True):
        for number, (name, points) in enumerate(results.items()):
            ordered = sorted(points, key=lambda point: point["output_rate"])
            rates = [point["output_rate"] for point in ordered]
            medians = [point[f"{key}_p50_ms"] for point in ordered]
            color = f"C{number % 10}"
            axis.plot(rates, medians, "o-", color=color, label=name)
            axis.plot(rates, [point[f"{key}_p99_ms"] for point in ordered], ".--", color=color, alpha=0.5)
            for point, rate, median in zip(ordered, rates, medians, strict=True):
                axis.annotate(_label(point), (rate, median), textcoords="offset points", xytext=(4, 4), fontsize=7)
        axis.set_xlabel("output tokens/s")
        axis.set_ylabel(title)
        axis.set_xlim(left=0)
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.3)
    axes[0][0].legend(fontsize=8)
    figure.suptitle("solid: median, dashed: 99th percentile", fontsize=9)
    try:
        figure.savefig(path)
    except OSError as error:
        raise ValueError(f"--plot {path} cannot be written: {error.strerror}") from None
    finally:
        pyplot.close(figure)


def points_of(path: Path) -> list[dict[str, Any]]:
    """The points in a file that `bench serve --output` wrote. Raises ValueError."""
    try:
        points = json.loads(path.read_text())["figures"]["points"]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise ValueError(f"{path} is no result of `raysgl bench serve --output`: {error!r}") from None
    return points


def _label(point: dict[str, Any]) -> str:
    return f"{point['rate']:g}/s" if point.get("rate") else str(point.get("concurrency") or "")
