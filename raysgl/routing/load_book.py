"""How busy a replica is right now: its last report, plus what has happened since.

A report does not yet count the requests that were still on their way when it was made. Requests sent within the last
moments before a report (one transit and two steps: requests are taken in between steps, and one step is always ahead) are
therefore counted on top of it, older ones are taken to be included.

A replica counts the whole prompts of those that wait: it doesn't look for their prefixes before their turn, and can't know which of
them will find what the one before has computed. Routing knows, so the book also keeps the line of requests sent there, with the
tokens that each was expected to compute, and believes the smaller sum.
"""

from __future__ import annotations

import math
from collections import deque

from raysgl.messages import Load

TRANSIT_S = 0.02
"""Ingress to engine and back, generously: ZeroMQ takes 1 ms each way, a busy event loop more."""


LINE_S = 10.0
"""By then, what was queued when a book was begun has had its turn."""


class Flight:
    """A request on its way to, or running at, a replica. tokens: uncached prompt tokens. sequences: rows it will take.

    started: its first token has come. absorbed: reports include it. hashes: of the pages that it is to compute.
    mine: this ingress sent it, and will learn of its first token. in_line: not known to be computed.
    """

    __slots__ = ("absorbed", "book", "hashes", "in_line", "mine", "sent_at", "sequences", "started", "tokens")

    def __init__(self, book: LoadBook, sent_at: float, tokens: int, sequences: int, hashes: list[int], mine: bool):
        self.book = book
        self.sent_at = sent_at
        self.tokens = tokens
        self.sequences = sequences
        self.hashes = hashes
        self.mine = mine
        self.in_line = True
        self.started = False
        self.absorbed = False

    @property
    def replica(self) -> str:
        return self.book.replica


class LoadBook:
    """One replica's load; `queued_tokens` and `occupancy` estimate it as of now, in the units of `Load`."""

    def __init__(self, replica: str, changed: set[LoadBook] | None = None):
        self.replica = replica
        self.load = Load()
        self.reported = False
        self.changed: set[LoadBook] = set() if changed is None else changed
        """The book puts itself here with every change; for whoever derives something from the figures."""
        self.changed.add(self)
        self._recent: deque[Flight] = deque()
        self._line: deque[Flight] = deque()
        self._line_tokens = 0
        # A book begun while others' requests were queued doesn't know the whole line.
        self._line_known = False
        self._begun = math.inf
        # What has happened since the report, to be added to its figures.
        self._tokens = 0
        self._waiting = 0
        self._running = 0

    @property
    def queued_tokens(self) -> int:
        """Prompt tokens not yet computed."""
        reported = max(0, self.load.queued_tokens + self._tokens)
        return min(reported, self._line_tokens) if self._line_known else reported

    def occupancy(self) -> tuple[int, int]:
        """(running, waiting). Requests sent since the report fill free places first, where nobody waits already."""
        load = self.load
        running = max(0, load.running + self._running)
        waiting = max(0, load.waiting + self._waiting)
        if load.waiting == 0:
            admitted = min(waiting, max(0, load.max_running - running)) if load.max_running else waiting
            return running + admitted, waiting - admitted
        return running, waiting

    def sent(self, now: float, tokens: int, sequences: int, hashes: list[int], mine: bool = True) -> Flight:
        """A request was sent to the replica, by this ingress or another."""
        flight = Flight(self, now, tokens, sequences, hashes, mine)
        self._recent.append(flight)
        self._line.append(flight)
        self._line_tokens += tokens
        self.changed.add(self)
        self._tokens += tokens
        self._waiting += sequences
        return flight

    def first_token(self, flight: Flight) -> None:
        """Its prompt has been computed."""
        if flight.started:
            return
        flight.started = True
        self.changed.add(self)
        # Prompts are computed about in order: others' that were sent before have had their turn.
        for earlier in self._line:
            if earlier is flight:
                break
            if not earlier.mine:
                self._computed(earlier)
        self._computed(flight)
        self._prune_line()
        self._tokens -= flight.tokens
        # Reports count a request as running from when its prefill starts, so only an unreported one changes sides here.
        if not flight.absorbed:
            self._waiting -= flight.sequences
            self._running += flight.sequences

    def finished(self, flight: Flight) -> None:
        """It is over, whether or not it had begun."""
        if not flight.started:
            self._tokens -= flight.tokens
        if flight.started or (flight.absorbed and not self.load.waiting):
            self._running -= flight.sequences
        else:
            self._waiting -= flight.sequences
        flight.started = True
        self._computed(flight)
        self._prune_line()
        self.changed.add(self)
        flight.sequences = flight.tokens = 0

    def report(self, load: Load, now: float) -> bool:
        """A report came. False if it is older than one that came before (reports come by two ways)."""
        if self.reported and (load.changes, load.steps) < (self.load.changes, self.load.steps):
            return False
        self.load = load
        self.reported = True
        self.changed.add(self)
        horizon = now - TRANSIT_S - 2 * load.step_seconds
        recent = self._recent
        while recent and recent[0].sent_at <= horizon:
            recent.popleft().absorbed = True
        self._begun = min(self._begun, now)
        if load.queued_tokens == 0:
            for flight in self._line:
                if flight.absorbed:
                    self._computed(flight)
            self._prune_line()
        if load.queued_tokens == 0 or now > self._begun + LINE_S:
            self._line_known = True
        self._tokens = sum(flight.tokens for flight in recent if not flight.started)
        self._waiting = sum(flight.sequences for flight in recent if not flight.started)
        self._running = sum(flight.sequences for flight in recent if flight.started)
        return True

    def _computed(self, flight: Flight) -> None:
        if flight.in_line:
            flight.in_line = False
            self._line_tokens -= flight.tokens

    def _prune_line(self) -> None:
        while self._line and not self._line[0].in_line:
            self._line.popleft()
