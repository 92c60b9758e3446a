"""GET /debug/index: has the replicas' trees compared with the coordinator's index and every ingress's mirror (`raysgl.routing.audit`)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Any

import msgspec
from ray.actor import ActorHandle
from ray.exceptions import RayError

from raysgl.messages import CacheReport
from raysgl.routing import Mirror, PrefixIndex, Views, compare
from raysgl.routing.index import SHARDS

REPORT_S = 10.0
"""An engine marks a batch between two steps, or while it waits for a long one; a reply of the coordinator comes after that."""
VIEWS_S = 2.0
"""Mirrors follow within some 30 ms."""
ROUNDS = 4
"""A restart takes the marks of before with it; by the next round they are there again."""
PAUSE_S = 0.5


async def wrong_masks(indexes: Iterable[PrefixIndex]) -> list[str]:
    """See `PrefixIndex.wrong_masks`. A shard at a time, so that nothing else of this loop waits long."""
    wrong: set[str] = set()
    for index in indexes:
        for shard in range(SHARDS):
            wrong |= index.wrong_masks(shard)
            await asyncio.sleep(0)
    return sorted(wrong)


class IndexCheck:
    """The ingress's side. handles: shard 0 of each replica; the ingress changes them."""

    def __init__(self, coordinator: Callable[[], ActorHandle], mirror: Mirror, handles: dict[str, ActorHandle]):
        self._coordinator, self._mirror, self._handles = coordinator, mirror, handles

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
        made = [report for report in answers if report is not None]
        try:
            encoded = await self._coordinator().views.remote(msgspec.msgpack.encode(made))
            views = msgspec.msgpack.decode(encoded, type=Views)
        except RayError:
            views = Views([], ["coordinator"])
        return compare(reports, views)

    async def _report(self, name: str, with_hashes: bool) -> CacheReport | None:
        handle = self._handles.get(name)
        if handle is None:
            return None
        try:
            answer = await asyncio.wait_for(handle.mark.remote(with_hashes), REPORT_S)
        except (RayError, TimeoutError):
            return None
        return msgspec.msgpack.decode(answer, type=CacheReport | None)
