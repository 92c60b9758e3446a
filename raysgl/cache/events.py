"""A replica's KV events, batched and numbered for the coordinator."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from raysgl.messages import CacheCleared, KVEvent, KVEvents, Load, PagesRemoved, PagesStored


class EventLog:
    """Collects what `RadixTree` emits (`on_event=log.append`) and cuts it into batches numbered without gaps.

    A batch that begins with `CacheCleared` makes sense to a reader who knows nothing or has missed batches; a snapshot is
    such a batch followed by others, so that it needs no message of its own. Batches may be dropped on the way: the reader sees
    the gap and asks for a snapshot.
    """

    def __init__(self, replica: str, epoch: int, shard: int = 0):
        self.replica = replica
        self.epoch = epoch
        self.shard = shard
        self.sequence = 0
        """Number of the next batch."""
        self._pending: list[KVEvent] = []

    def __len__(self) -> int:
        return len(self._pending)

    def append(self, event: KVEvent) -> None:
        """Note an event for the next batch."""
        last = self._pending[-1] if self._pending else None
        if isinstance(event, CacheCleared):
            self._pending = [event]
        elif (
            isinstance(event, PagesStored)
            and isinstance(last, PagesStored)
            and event.parent == last.hashes[-1]
            or isinstance(event, PagesRemoved)
            and isinstance(last, PagesRemoved)
        ):
            last.hashes += event.hashes
        else:
            self._pending.append(event)

    def heartbeat(self) -> KVEvents:
        """A batch without anything: a sign of life."""
        return self._batch([], None)

    def drain(self, load: Load | None = None, mark: Literal[0, 1, 2] = 0) -> KVEvents | None:
        """The events since the last call, with the load if one is given. None when there is nothing to say. mark: see `KVEvents`."""
        if not self._pending and load is None and not mark:
            return None
        events, self._pending = self._pending, []
        return self._batch(events, load, mark)

    def snapshot(self, stored: Iterable[PagesStored], load: Load | None = None, max_pages: int = 65536) -> list[KVEvents]:
        """Batches that say all that is cached (`RadixTree.stored()`, parents before children), replacing pending events.

        More than `max_pages` hashes go into several batches (65,536 take about 0.6 MB on the wire).
        """
        self._pending.clear()
        batches = []
        events: list[KVEvent] = [CacheCleared()]
        size = 0
        for run in stored:
            if size and size + len(run.hashes) > max_pages:
                batches.append(self._batch(events, None))
                events, size = [], 0
            events.append(run)
            size += len(run.hashes)
        batches.append(self._batch(events, load))
        return batches

    def _batch(self, events: list[KVEvent], load: Load | None, mark: Literal[0, 1, 2] = 0) -> KVEvents:
        batch = KVEvents(self.replica, self.epoch, self.sequence, events, load, self.shard, mark)
        self.sequence += 1
        return batch
