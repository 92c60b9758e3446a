"""Who may still wait: a bound on the queue in requests, and in seconds, from how fast the queue has been moving. No torch, no Ray.

What the queue waits for does not matter: prefill, places to run, or memory. While sequences wait, those that are admitted are counted
by number and by prompt tokens; of the two waits that follow, the longer one is believed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from raysgl.engine.sequence import Sequence
from raysgl.engine.waiting import WaitingQueue, turn_of
from raysgl.messages import Finish, Submit

WINDOW_S, WINDOW = 3.0, 8
"""Older measurements count less: those of more than so many seconds and so many admissions ago. (A window of admissions alone is a few
steps of a fast engine, and one of seconds holds none of a slow one.)"""
FEW = 4
BRIEF_S = 0.5
"""Fewer admissions, or a shorter time with a queue, say nothing."""
SHED = 2.0
"""Accepted requests are refused after all when the queue is so many times as long as it may be: measured rates err, and change."""


class QueueTime:
    """Times in seconds, monotonic."""

    def __init__(self) -> None:
        self._at = 0.0
        self._queued = False
        # With a queue, discounted: how long it was, how many sequences and prompt tokens were admitted.
        self._seconds = self._sequences = self._tokens = 0.0

    def planned(self, now: float, sequences: int, tokens: int, queued: bool) -> None:
        """A step was planned, with which so many sequences begin. queued: others still wait."""
        if self._queued:
            passed = now - self._at
            keep = math.exp(-min(passed / WINDOW_S, sequences / WINDOW))
            self._seconds = self._seconds * keep + passed
            self._sequences = self._sequences * keep + sequences
            self._tokens = self._tokens * keep + tokens
        self._at, self._queued = now, queued

    def wait(self, sequences: int, tokens: int) -> float:
        """How long until so many, with so many prompt tokens together, have begun. 0 while that is not known."""
        if self._sequences < FEW or self._seconds < BRIEF_S:
            return 0.0
        return self._seconds * max(sequences / self._sequences, tokens / max(self._tokens, 1.0))


class QueueLimit:
    """most: requests that may wait beyond those for which there are places. most_seconds: how long they may expect to wait."""

    def __init__(self, waiting: WaitingQueue, most: int, most_seconds: float):
        self._waiting, self._most, self._most_seconds = waiting, most, most_seconds
        self.time = QueueTime()

    @property
    def seconds(self) -> float:
        """How long a request that comes now would wait."""
        return self.time.wait(len(self._waiting), self._waiting.tokens)

    @property
    def full(self) -> bool:
        """Whether it would be refused for that."""
        return self.seconds > self._most_seconds

    def refusal(self, submit: Submit, waiting: int, places: int, now: float) -> Finish | None:
        """Of a request that came just now. waiting: all that wait, in whatever way. places: free ones."""
        if submit.accepted:
            return None
        said = f"{waiting} requests are waiting already"
        if waiting + submit.sampling.n > self._most + places:
            return _too_many(said, self.seconds)
        wait = self.time.wait(*self._waiting.ahead(turn_of(now - submit.waited_s, submit.priority)))
        limit = min(self._most_seconds, submit.timeout_s or math.inf)
        return _too_many(f"{said}, which takes {wait:.0f} s", wait) if wait > limit else None

    def shed(self) -> Iterator[tuple[Sequence, Finish]]:
        """Those that must go after all, last ones first; the caller takes each out of the queue."""
        if self.seconds <= SHED * self._most_seconds:
            return
        for seq in self._waiting.last_first():
            if not self.full:
                return
            if not seq.accepted and not seq.announced:
                yield seq, _too_many("the queue moves slower than it did", self.seconds)


def _too_many(message: str, wait: float) -> Finish:
    """A refusal that another replica, or the same one later, may not repeat. wait: of the queue, in seconds."""
    return Finish("abort", message=message, status=429, retry_after=wait / 2)
