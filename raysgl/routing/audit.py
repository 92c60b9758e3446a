"""Is the index exact? What the replicas hold, against what the coordinator and every ingress's mirror think they hold.

Each replica marks a batch of its KV events and walks its radix tree at just that place; whoever applies the batch takes down what
it then knows. So views of one moment in the replica's life are compared, though they are never made at the same time, and though
requests come and go meanwhile.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec
import numpy as np

from raysgl.messages import CacheMark, CacheReport

EXAMPLES = 5


class CacheView(msgspec.Struct, array_like=True):
    """What the coordinator or a mirror (`who`) took down at the marks. wrong: replicas whose pages in its index are not those that
    the index itself remembers having stored."""

    who: str
    marks: list[CacheMark]
    wrong: list[str]


class Views(msgspec.Struct, array_like=True):
    """The coordinator's and the mirrors'. silent: mirrors that have not said theirs, though they live."""

    views: list[CacheView]
    silent: list[str]


def covers(view: CacheView, reports: Iterable[CacheReport]) -> bool:
    """Whether a view is as far as these reports."""
    places = {mark.replica: (mark.epoch, mark.sequence) for mark in view.marks}
    return all(places.get(r.mark.replica, (0, 0)) >= (r.mark.epoch, r.mark.sequence) for r in reports)


def compare(reports: Mapping[str, CacheReport | None], views: Views) -> dict[str, Any]:
    """What GET /debug/index answers.

    reports: by replica; None for one that could not mark a batch now. Everything is "equal" or "different"; or "busy", where it could not be
    compared: something is being restarted, or has only just been.
    """
    replicas = {name: _of_replica(name, report, views) for name, report in reports.items()}
    found = {replica["status"] for replica in replicas.values()}
    status = "different" if "different" in found else "busy" if "busy" in found or views.silent else "equal"
    return {"status": status, "replicas": replicas}


def _of_replica(name: str, report: CacheReport | None, views: Views) -> dict[str, Any]:
    if report is None:
        return {"status": "busy"}
    mark = report.mark
    balanced = report.free + mark.pages + report.in_use == report.pool
    seen = {view.who: _compare(name, mark, view) for view in views.views}
    seen |= {who: {"status": "busy"} for who in views.silent}
    found = {view["status"] for view in seen.values()}
    status = "different" if "different" in found or not balanced else "busy" if "busy" in found else "equal"
    return {
        "status": status,
        "epoch": mark.epoch,
        "sequence": mark.sequence,
        "pages": {
            "pool": report.pool,
            "free": report.free,
            "cached": mark.pages,
            "in_use": report.in_use,
            "balanced": balanced,
        },
        "views": seen,
    }


def _compare(name: str, held: CacheMark, view: CacheView) -> dict[str, Any]:
    seen = next((mark for mark in view.marks if mark.replica == name), None)
    if seen is None or (seen.epoch, seen.sequence) != (held.epoch, held.sequence):
        return {"status": "busy"}
    if name in view.wrong:
        return {"status": "different", "pages": seen.pages, "problem": "its masks are not what its events stored"}
    if (seen.pages, seen.digest) == (held.pages, held.digest):
        return {"status": "equal"}
    different: dict[str, Any] = {"status": "different", "pages": seen.pages}
    if seen.hashes is not None and held.hashes is not None:
        theirs, ours = np.frombuffer(seen.hashes, "<u8"), np.frombuffer(held.hashes, "<u8")
        for what, pages in (("missing", np.setdiff1d(ours, theirs)), ("extra", np.setdiff1d(theirs, ours))):
            different[what] = {"count": len(pages), "examples": [f"{page:016x}" for page in pages[:EXAMPLES].tolist()]}
    return different
