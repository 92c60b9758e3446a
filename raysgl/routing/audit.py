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
    places = {(mark.replica, mark.shard): (mark.epoch, mark.sequence) for mark in view.marks}
    wanted = [mark for report in reports for mark in report.marks]
    return all(places.get((mark.replica, mark.shard), (0, 0)) >= (mark.epoch, mark.sequence) for mark in wanted)


def compare(reports: Mapping[str, CacheReport | None], views: Views) -> dict[str, Any]:
    """What GET /debug/index answers.

    reports: by replica; None for one that could not mark a batch now. Everything is "equal" or "different"; or "busy", where it could not be
    compared: something is being restarted, or has only just been.
    """
    replicas = {name: _of_replica(name, report, views) for name, report in reports.items()}
    found = {replica["status"] for replica in replicas.values()} | ({"busy"} if views.silent else set())
    return {"status": _worst(found), "replicas": replicas}


def _of_replica(name: str, report: CacheReport | None, views: Views) -> dict[str, Any]:
    if report is None:
        return {"status": "busy"}
    cached = sum(mark.pages for mark in report.marks)
    balanced = report.free + cached + report.in_use == report.pool
    seen = {view.who: _compare(name, report.marks, view) for view in views.views}
    seen |= {who: {"status": "busy"} for who in views.silent}
    found = {view["status"] for view in seen.values()}
    return {
        "status": "different" if not balanced else _worst(found),
        "epoch": report.marks[0].epoch,
        "sequences": [mark.sequence for mark in report.marks],
        "pages": {"pool": report.pool, "free": report.free, "cached": cached, "in_use": report.in_use, "balanced": balanced},
        "views": seen,
    }


def _worst(found: set[str]) -> str:
    return "different" if "different" in found else "busy" if "busy" in found else "equal"


def _compare(name: str, held: list[CacheMark], view: CacheView) -> dict[str, Any]:
    seen = {mark.shard: mark for mark in view.marks if mark.replica == name}
    pairs = [(mark, seen.get(mark.shard)) for mark in held]
    if any(other is None or (other.epoch, other.sequence) != (mark.epoch, mark.sequence) for mark, other in pairs):
        return {"status": "busy"}
    known = [(mark, other) for mark, other in pairs if other is not None]
    pages = sum(other.pages for _, other in known)
    if name in view.wrong:
        return {"status": "different", "pages": pages, "problem": "its masks are not what its events stored"}
    wrong = [(mark, other) for mark, other in known if (mark.pages, mark.digest) != (other.pages, other.digest)]
    if not wrong:
        return {"status": "equal"}
    different: dict[str, Any] = {"status": "different", "pages": pages}
    if all(mark.hashes is not None and other.hashes is not None for mark, other in wrong):
        ours = np.concatenate([np.frombuffer(mark.hashes or b"", "<u8") for mark, _ in wrong])
        theirs = np.concatenate([np.frombuffer(other.hashes or b"", "<u8") for _, other in wrong])
        for what, some in (("missing", np.setdiff1d(ours, theirs)), ("extra", np.setdiff1d(theirs, ours))):
            different[what] = {"count": len(some), "examples": [f"{page:016x}" for page in some[:EXAMPLES].tolist()]}
    return different
