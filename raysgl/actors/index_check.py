"""GET /debug/index: has the replicas' trees compared with the coordinator's index and every ingress's mirror (`raysgl.routing.audit`)."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

import msgspec
from ray.actor import ActorHandle
from ray.exceptions import RayError

from raysgl.messages import CacheReport
from raysgl.routing import CacheView, Mirror, PrefixIndex, Views, compare
from raysgl.routing.index import SHARDS

REPORT_S = 10.0
"""An engine marks a batch between two steps, or while it waits for a long one; a reply of the coordinator comes after that."""
VIEWS_S = 2.0
"""Mirrors follow within some 30 ms."""
ROUNDS = 4
"""A restart takes the marks of before with it; by the next round they are there again."""
PAUSE_S = 0.5
COORDINATOR = "coordinator"
"""What its view is called."""


async def wrong_masks(indexes: Iterable[PrefixIndex]) -> list[str]:
    """See `PrefixIndex.wrong_masks`. A shard at a time, so that nothing else of this loop waits long."""
    wrong: set[str] = set()
    for index in indexes:
        for shard in range(SHARDS):
            wrong |= index.wrong_masks(shard)
            await asyncio.sleep(0)
    return sorted(wrong)


class IndexCheck:
    """The ingress's side, which changes its arguments. coordinators: its shards. handles: shard 0 of each replica."""

    def __init__(self, coordinators: list[ActorHandle], mirror: Mirror, handles: dict[str, ActorHandle]):
        self._coordinators, self._mirror, self._handles = coordinators, mirror, handles

    async def __call__(self, models: Iterable[str]) -> dict[str, Any]:
        """Compare; again where something could not be compared, and with page hashes where something differs."""
        models = list(models)
        with_hashes = False
        for left in reversed(range(ROUNDS)):
            result = await self._round(models, with_hashes)
            if result["status"] == "equal" or (result["status"] == "different" and with_hashes):
                break
            with_hashes = result["status"] == "different"
            if not with_hashes and left:
                await asyncio.sleep(PAUSE_S)
        return result

    async def _round(self, models: list[str], with_hashes: bool) -> dict[str, Any]:
        names = [info.replica for model in models for info in self._mirror.replicas(model)]
        answers = await asyncio.gather(*(self._report(name, with_hashes) for name in names))
        reports = dict(zip(names, answers))
        return compare(reports, await self._views([report for report in answers if report is not None]))

    async def _views(self, reports: list[CacheReport]) -> Views:
        """The mirrors', and one of the coordinator's shards together."""
        try:
            mirrors = await self._coordinators[0].mirrors_views.remote(msgspec.msgpack.encode(reports))
            shards = await asyncio.gather(*(coordinator.own_view.remote() for coordinator in self._coordinators))
        except RayError:
            return Views([], [COORDINATOR])
        views = msgspec.msgpack.decode(mirrors, type=Views)
        parts = [msgspec.msgpack.decode(shard, type=CacheView) for shard in shards]
        whole = CacheView(
            COORDINATOR, [m for part in parts for m in part.marks], [name for part in parts for name in part.wrong]
        )
        return Views([whole, *views.views], views.silent)

    async def _report(self, name: str, with_hashes: bool) -> CacheReport | None:
        handle = self._handles.get(name)
        if handle is None:
            return None
        try:
            answer = await asyncio.wait_for(handle.mark.remote(with_hashes), REPORT_S)
        except (RayError, TimeoutError):
            return None
        return msgspec.msgpack.decode(answer, type=CacheReport | None)
