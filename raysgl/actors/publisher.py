"""Tells the coordinator what a replica has cached and how busy it is: in batches, from a thread, never from the loop. No Ray."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence

from raysgl.cache.events import EventLog
from raysgl.messages import KVEvent, KVEvents, Load, PagesStored
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


class EventPublisher:
    """`report` sends a batch and returns the coordinator's reply, `register` introduces the replica; both may raise.

    The loop calls `publish` and, every round, `tick`. on_dead: the coordinator says that this life of the replica is over.
    """

    def __init__(
        self,
        replica: str,
        epoch: int,
        report: Callable[[KVEvents], Reply],
        register: Callable[[], Reply],
        stored: Callable[[], Sequence[PagesStored]],
        on_dead: Callable[[], None],
    ):
        self.load = Load()
        self._report, self._register, self._stored, self._on_dead = report, register, stored, on_dead
        self._log = EventLog(replica, epoch)
        self._events: deque[list[KVEvent] | Sequence[PagesStored]] = deque()
        self._news = threading.Event()
        self._stopped = threading.Event()
        self._sent_at = 0.0
        self._unsent = False
        self._snapshot_wanted = False
        self._snapshot: Sequence[PagesStored] | None = None
        self._thread = threading.Thread(target=self._run, name="publisher", daemon=True)

    def start(self) -> None:
        """Begin; the replica must be registered."""
        self._thread.start()

    def publish(self, events: list[KVEvent], load: Load) -> None:
        """From the loop thread. `events` is not to be changed afterwards."""
        if events:
            self._events.append(events)
        elif load == self.load and not self._unsent:
            return
        same = load.running == self.load.running and load.waiting == self.load.waiting
        self.load = load
        self._unsent = not events and same and time.monotonic() - self._sent_at < STEADY_S
        if not self._unsent:
            self._news.set()

    def tick(self) -> None:
        """From the loop thread, which owns the radix tree: take a snapshot if one is wanted."""
        if self._snapshot_wanted:
            self._snapshot_wanted = False
            # Events of before that are still on their way repeat or undo what it says, and end at the same state.
            self._snapshot = list(self._stored())
            self._news.set()

    def close(self) -> None:
        self._stopped.set()
        self._news.set()
        self._thread.join(2)

    # ---------------------------------------------------------------- the thread

    def _run(self) -> None:
        quiet = False
        while not self._stopped.is_set():
            quiet = not self._news.wait(HEARTBEAT_S if quiet else AFTERMATH_S)
            self._news.clear()
            self._sent_at = time.monotonic()
            try:
                for batch in self._batches(self.load):
                    self._obey(self._report(batch))
            except Exception as error:  # noqa: BLE001  whatever Ray raises, serving goes on without the coordinator
                log.info("the coordinator does not answer (%s)", type(error).__name__)
                self._stopped.wait(HEARTBEAT_S)
            self._stopped.wait(PERIOD_S)

    def _batches(self, load: Load) -> list[KVEvents]:
        snapshot, self._snapshot = self._snapshot, None
        pending = [self._events.popleft() for _ in range(len(self._events))]
        batches = [] if snapshot is None else self._log.snapshot(snapshot)
        for events in pending:
            for event in events:
                self._log.append(event)
        batch = self._log.drain(load)
        return batches if batch is None else [*batches, batch]

    def _obey(self, reply: Reply) -> None:
        if reply.action == "dead":
            self._on_dead()
        elif reply.action == "register":
            self._obey(self._register())
            self._snapshot_wanted = True
        elif reply.action == "snapshot":
            self._snapshot_wanted = True
