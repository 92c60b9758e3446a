"""Tells the coordinator what a replica has cached and how busy it is: in batches, from a thread, never from the loop. No Ray."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass

from raysgl.cache.sharded_events import ShardedEvents
from raysgl.messages import CacheReport, KVEvent, KVEvents, Load, PagesStored
from raysgl.routing.messages import Reply

log = logging.getLogger(__name__)

PERIOD_S = 0.03
"""At most so often while there is news; an actor answers about 1,350 calls/s here, so forty busy replicas fit."""
STEADY_S = 0.25
"""How often when all that has changed are counters and rates. A report wakes three processes: one for each decode step made a single
stream a tenth slower on 2 cores (24.8 against 28.3 tokens/s)."""
HEARTBEAT_S = 1.0
"""Without news, how often the load is sent again. It also finds out that the coordinator has restarted."""
AFTERMATH_S = 0.1
"""How soon after the last news. Mirrors count a request they were told of on top of a load report that came at the same moment, so
a replica that has just gone quiet says so once more."""


@dataclass
class _Snapshot:
    """The whole tree, for the shards that asked."""

    runs: list[PagesStored]
    shards: set[int]


class _Mark:
    """A wish for a mark, and from the moment when it is among the events, what the cache holds there."""

    def __init__(self, with_hashes: bool):
        self.with_hashes = with_hashes
        self.report: CacheReport | None = None
        self.applied = 0
        self.answer: Future[CacheReport | None] = Future()
        self.answer.set_running_or_notify_cancel()  # nobody takes the wish back


class EventPublisher:
    """`report` sends a batch to the shard of the coordinator that it is for and returns the reply, `register` introduces the replica
    to a shard; both may raise. Loads go to the first shard. While one does not answer the others wait too, some seconds at most.

    The loop calls `publish` every round. on_dead: the coordinator says that this life of the replica is over.
    stored: the radix tree, as events. cache_report(with_hashes): see `raysgl.engine.cache_report`. Both run in the loop's thread.
    """

    def __init__(
        self,
        replica: str,
        epoch: int,
        report: Callable[[KVEvents], Reply],
        register: Callable[[int], Reply],
        stored: Callable[[], Sequence[PagesStored]],
        on_dead: Callable[[], None],
        cache_report: Callable[[bool], CacheReport],
        shards: int = 1,
    ):
        self.load = Load()
        self._report, self._register, self._stored, self._on_dead = report, register, stored, on_dead
        self._cache_report = cache_report
        self._log = ShardedEvents(replica, epoch, shards)
        # In the order in which they happened to the tree.
        self._events: deque[list[KVEvent] | _Snapshot | _Mark] = deque()
        self._marks: deque[_Mark] = deque()
        self._news = threading.Event()
        self._stopped = threading.Event()
        self._sent_at = 0.0
        self._unsent = False
        self._heard_by = [0.0] * shards
        self._snapshots_wanted: set[int] = set()
        self._thread = threading.Thread(target=self._run, name="publisher", daemon=True)

    def start(self) -> None:
        """Begin; the replica must be registered."""
        self._thread.start()

    def publish(self, events: list[KVEvent], load: Load) -> None:
        """From the loop thread, which owns the radix tree: `events` are all that has happened to it. The list is not to be changed
        afterwards."""
        if events:
            self._events.append(events)
        news = self._take_wishes() or bool(events)
        if not news and load == self.load and not self._unsent:
            return
        before = self.load
        same = (load.running, load.waiting, load.changes) == (before.running, before.waiting, before.changes)
        self.load = load
        self._unsent = not news and same and time.monotonic() - self._sent_at < STEADY_S
        if not self._unsent:
            self._news.set()

    def mark(self, with_hashes: bool = False) -> Future[CacheReport | None]:
        """From any thread: mark a batch (see `KVEvents`), and say what the tree held at just that place among its events. The answer
        comes when the coordinator has applied the batch; it is None if that had no use for it, or is away."""
        mark = _Mark(with_hashes)
        self._marks.append(mark)
        return mark.answer

    def close(self) -> None:
        self._stopped.set()
        self._news.set()
        self._thread.join(2)

    def _take_wishes(self) -> bool:
        """In the loop thread: a snapshot and marks, if they are wanted."""
        wished = bool(self._snapshots_wanted or self._marks)
        if self._snapshots_wanted:
            # One that is added to the old set right now is seen too: who adds to it is who will read it.
            wanted, self._snapshots_wanted = self._snapshots_wanted, set()
            self._events.append(_Snapshot(list(self._stored()), wanted))
        while self._marks:
            mark = self._marks.popleft()
            mark.report = self._cache_report(mark.with_hashes)
            self._events.append(mark)
        return wished

    # ---------------------------------------------------------------- the thread

    def _run(self) -> None:
        quiet = False
        while not self._stopped.is_set():
            quiet = not self._news.wait(HEARTBEAT_S if quiet else AFTERMATH_S)
            self._news.clear()
            self._sent_at = time.monotonic()
            batches = self._batches(self.load)
            away = [shard for shard in range(len(self._heard_by)) if not self._send(batches, shard)]
            for _, mark in batches:
                if mark is not None and not mark.answer.done():
                    mark.answer.set_result(mark.report if mark.applied == len(self._heard_by) else None)
            self._stopped.wait(HEARTBEAT_S if away else PERIOD_S)

    def _send(self, batches: list[tuple[KVEvents, _Mark | None]], shard: int) -> bool:
        """Those that are for one shard. False if it does not answer; it will miss them, and ask for a snapshot."""
        try:
            for batch, mark in batches:
                if batch.shard == shard:
                    reply = self._report(batch)
                    self._heard_by[shard] = time.monotonic()
                    if mark is not None and reply.action == "none":
                        mark.applied += 1
                    self._obey(reply, shard)
        except Exception as error:  # noqa: BLE001  whatever Ray raises, serving goes on without the coordinator
            log.info("the coordinator does not answer (%s)", type(error).__name__)
            return False
        return True

    def _batches(self, load: Load) -> list[tuple[KVEvents, _Mark | None]]:
        """All that is to be sent, with the mark that ends a batch. A list: what is numbered and not sent must be missed."""
        batches: list[tuple[KVEvents, _Mark | None]] = []
        logs = self._log.logs
        for _ in range(len(self._events)):
            item = self._events.popleft()
            if isinstance(item, _Snapshot):
                batches += [(batch, None) for shard in sorted(item.shards) for batch in self._log.snapshot(item.runs, shard)]
            elif isinstance(item, _Mark):
                assert item.report is not None
                for events, mark in zip(logs, item.report.marks):
                    batch = events.drain(mark=2 if item.with_hashes else 1)
                    assert batch is not None
                    mark.sequence = batch.sequence
                    batches.append((batch, item))
            else:
                for event in item:
                    self._log.append(event)
        for shard, events in enumerate(logs):
            last = events.drain(None if shard else load)
            if last is None and self._sent_at - self._heard_by[shard] >= HEARTBEAT_S:
                last = events.heartbeat()
            if last is not None:
                batches.append((last, None))
        return batches

    def _obey(self, reply: Reply, shard: int) -> None:
        if reply.action == "dead":
            self._on_dead()
        elif reply.action == "register":
            self._obey(self._register(shard), shard)
            self._snapshots_wanted.add(shard)
        elif reply.action == "snapshot":
            self._snapshots_wanted.add(shard)
