"""A replica's KV events, told apart by coordinator shard: a chain's all go to the shard of its first page (`shard_of`)."""

from __future__ import annotations

from collections.abc import Sequence

from raysgl.cache.events import EventLog
from raysgl.cache.hashing import shard_of
from raysgl.messages import CacheCleared, KVEvent, KVEvents, PagesRemoved, PagesStored


class ShardedEvents:
    """One `EventLog` for each shard. Events must come in the order in which the radix tree emits them: a page after its parent."""

    def __init__(self, replica: str, epoch: int, shards: int = 1):
        self.logs = [EventLog(replica, epoch, shard) for shard in range(shards)]
        # Of every page that is cached, since an event about its children or its end doesn't name its chain's first page.
        self._shard_of: dict[int, int] = {}

    def append(self, event: KVEvent) -> None:
        """Note an event for the next batch of whom it concerns."""
        if len(self.logs) == 1:
            self.logs[0].append(event)
        elif isinstance(event, PagesStored):
            shard = self._shard(event)
            self._shard_of.update(dict.fromkeys(event.hashes, shard))
            self.logs[shard].append(event)
        elif isinstance(event, PagesRemoved):
            removed: dict[int, list[int]] = {}
            for page in event.hashes:
                removed.setdefault(self._shard_of.pop(page), []).append(page)
            for shard, pages in removed.items():
                self.logs[shard].append(PagesRemoved(pages))
        else:
            self._shard_of.clear()
            for log in self.logs:
                log.append(CacheCleared())

    def snapshot(self, stored: Sequence[PagesStored], shard: int, max_pages: int = 65536) -> list[KVEvents]:
        """Batches that say all that is cached of one shard's part; `stored` is the whole tree's as of the last event. See `EventLog`."""
        return self.logs[shard].snapshot((run for run in stored if self._shard(run) == shard), max_pages=max_pages)

    def _shard(self, run: PagesStored) -> int:
        if len(self.logs) == 1:
            return 0
        return self._shard_of[run.parent] if run.parent else shard_of(run.hashes[0], len(self.logs))
