"""Which replica a request goes to: the one where it costs the least seconds.

    cost(replica) = uncached prompt tokens / prefill rate
                  + queued prompt tokens of others / prefill rate
                  + waiting for a place to run and for KV pages
                  + a few decode steps at the replica's present pace

(DESIGN.md, "Global index"; reference/serving-systems.md, Appendix C.) Rates are the replica's own measurements. Ties are broken at
random, so that nothing piles up on the first replica. There is no switch that turns affinity off: a hot prefix spreads when,
and only when, recomputing it elsewhere is quicker than waiting for it.

Queued tokens that are the request's own prefix, sent moments ago for another request, are not counted as waiting: it would have
to compute them elsewhere itself. So requests that arrive together with a common new prefix follow the first of them, until the
rest of those ahead takes longer than the prefix.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from xxhash import xxh3_64_intdigest

from raysgl.messages import CacheCleared, KVEvents, Load
from raysgl.routing.index import Applied, PrefixIndex
from raysgl.routing.load_book import Flight, LoadBook
from raysgl.routing.messages import ReplicaInfo
from raysgl.routing.optimistic import OptimisticPages

DEFAULT_PREFILL_RATE = 2000.0
"""Tokens/s of a replica when no replica has measured any yet. Only ratios matter then, so a small CPU's figure will do."""

DEFAULT_DECODE_RATE = 100.0
"""Tokens/s of all sequences of a replica, before any measurement."""

EXPECTED_OUTPUT = 128
"""Output tokens assumed of a request, to judge when places and pages come free."""

PACE_STEPS = 4
"""Decode steps whose duration counts in the cost: a busy batch is worth less than a quiet one, but far less than a prefix."""

TIE_S = 1e-6
SESSION_SLACK_S = 0.01
"""Costs that differ by less than these are equal, without and with a session to keep in its place."""


@dataclass(slots=True)
class RouteRequest:
    """A prompt to place. hashes: its page hashes. num_tokens: of the prompt. sequences: `n`. session: an affinity key or "".

    exclude: replicas not to use, such as one that just refused or lost this request.
    """

    hashes: Sequence[int]
    num_tokens: int
    sequences: int = 1
    session: str = ""
    exclude: frozenset[str] = frozenset()


@dataclass(slots=True)
class Decision:
    """Where a request goes. hit_pages: leading pages that the replica has or is about to have. cost: seconds, an estimate.

    ticket: for `Router.first_token` and `Router.finish`; finish must be called in the end, whatever happens.
    tokens, new_hashes: what the replica is to compute; for the notice to other ingresses.
    """

    replica: str
    epoch: int
    hit_pages: int
    cost: float
    ticket: int
    tokens: int
    new_hashes: list[int]


@dataclass(slots=True)
class Refusal:
    """No replica takes the request. full: all of them have `max_queued` waiting; try again after so many seconds.
    none: there is none that is alive, not draining and not excluded."""

    reason: Literal["full", "none"]
    retry_after: float


class _Replica:
    """A replica and what its cost is made of, derived from its book when that has changed.

    rate: prefill tokens/s, 0 if unmeasured. queued: prompt tokens ahead. over: sequences beyond the places to run in, if one more
    came. room: tokens that its pages still take. slowness: seconds for the pace of its decode. open: below `max_queued`.
    """

    __slots__ = ("book", "decode_rate", "info", "limited", "open", "over", "queued", "rate", "room", "slowness")

    def __init__(self, info: ReplicaInfo):
        self.info = info
        self.book = LoadBook(info.replica)

    def refresh(self) -> None:
        book, load = self.book, self.book.load
        book.changed = False
        running, waiting = book.occupancy()
        self.queued = book.queued_tokens
        self.rate = load.prefill_rate
        self.decode_rate = load.decode_rate or DEFAULT_DECODE_RATE
        self.limited = load.max_running > 0
        self.over = running + waiting + 1 - load.max_running if self.limited else 0
        page_size = self.info.page_size
        self.room = (load.free_pages + load.cached_pages) * page_size - self.queued if load.total_pages else 1 << 60
        self.slowness = PACE_STEPS * load.step_seconds * running / max(1, load.running)
        # A place to run is taken even where nobody may wait.
        self.open = waiting < self.info.max_queued or (waiting == 0 and self.over <= 0)

    def cost(self, request: RouteRequest, hit: int, coming: int, default_rate: float) -> float:
        """Seconds, as at the top of the file. hit, coming: tokens cached or about to be, and those of them only about to be."""
        uncached = max(1, request.num_tokens - hit)
        seconds = (uncached + max(0, self.queued - coming)) / (self.rate or default_rate) + self.slowness
        over = self.over + request.sequences - 1
        if over > 0 and self.limited:
            seconds += over * EXPECTED_OUTPUT / self.decode_rate
        short = uncached + EXPECTED_OUTPUT * request.sequences - self.room
        return seconds + short / self.decode_rate if short > 0 else seconds

    def queue_seconds(self, default_rate: float) -> float:
        """How long until all that waits now has got its turn."""
        waiting = self.book.occupancy()[1]
        return max(self.queued / (self.rate or default_rate), waiting * EXPECTED_OUTPUT / self.decode_rate)


class Router:
    """Decides for one model, from an index and load reports. Not thread safe. Times are `time.monotonic()`, given by the caller."""

    def __init__(self, seed: int | None = None):
        self.index = PrefixIndex()
        self.optimistic = OptimisticPages()
        self._replicas: dict[str, _Replica] = {}
        self._flights: dict[int, Flight] = {}
        self._tickets = itertools.count(1)
        self._random = random.Random(seed)

    # ------------------------------------------------------------------ what is known

    def join(self, info: ReplicaInfo, index_too: bool = True) -> None:
        """A replica (or a new life of one). index_too=False where the index already knows it."""
        self._forget(info.replica)
        self._replicas[info.replica] = _Replica(info)
        if index_too:
            self.index.add(info.replica, info.epoch)

    def leave(self, replica: str, epoch: int) -> None:
        """A life of a replica has ended, and so has any before it. Does nothing if a later one is known."""
        known = self.epoch(replica)
        if known is not None and known <= epoch:
            self._forget(replica)
            self.index.drop(replica)

    def drain(self, replica: str, epoch: int, draining: bool = True) -> None:
        """A replica takes no more requests, or does so again."""
        if self.epoch(replica) == epoch:
            self._replicas[replica].info.draining = draining

    def events(self, batch: KVEvents, now: float) -> Applied:
        """Apply a replica's batch of KV events, and the load in it."""
        applied = self.index.apply(batch)
        if applied is Applied.OK:
            for event in batch.events:
                if not isinstance(event, CacheCleared):
                    self.optimistic.confirm(batch.replica, event.hashes)
        if batch.load is not None:
            self.load(batch.replica, batch.epoch, batch.load, now)
        return applied

    def load(self, replica: str, epoch: int, load: Load, now: float) -> None:
        """A load report. Where it came together with tokens, tell of those first (`first_token`, `finish`)."""
        if self.epoch(replica) == epoch:
            self._replicas[replica].book.report(load, now)

    def routed(self, replica: str, epoch: int, tokens: int, hashes: list[int], now: float) -> None:
        """Another ingress sent a request to a replica."""
        if self.epoch(replica) == epoch:
            self._replicas[replica].book.sent(now, tokens, 1, hashes)
            self.optimistic.add(replica, hashes, now)

    def epoch(self, replica: str) -> int | None:
        """The known life of a replica; None if there is none."""
        known = self._replicas.get(replica)
        return known.info.epoch if known else None

    def replicas(self) -> list[ReplicaInfo]:
        """All known replicas, draining ones too."""
        return [known.info for known in self._replicas.values()]

    def info(self, replica: str) -> ReplicaInfo | None:
        """A replica's registration."""
        known = self._replicas.get(replica)
        return known.info if known else None

    def loads(self) -> dict[str, Load]:
        """Last reports."""
        return {name: known.book.load for name, known in self._replicas.items()}

    def adopt(self, previous: Router) -> None:
        """Take over from a router that this one replaces: its tickets, and the loads and optimistic pages of the lives both know."""
        self._flights, self._tickets = previous._flights, previous._tickets
        self.optimistic = previous.optimistic
        for name, known in previous._replicas.items():
            if self.epoch(name) == known.info.epoch:
                self._replicas[name].book = known.book
                known.book.changed = True
            else:
                self.optimistic.drop_replica(name)

    # ------------------------------------------------------------------ deciding

    def choose(self, requests: Iterable[RouteRequest], now: float) -> list[Decision | Refusal]:
        """Place requests that arrived together, in order. Each one placed counts when the next is."""
        self.optimistic.expire(now)
        default_rate = self._default_rate()
        return [self._choose(request, default_rate, now) for request in requests]

    def first_token(self, ticket: int, now: float) -> None:
        """The first token of a request has come: its prompt is computed."""
        flight = self._flights.get(ticket)
        if flight is not None and not flight.started:
            flight.book.first_token(flight)
            self.optimistic.settle(flight.replica, flight.hashes, now)

    def finish(self, ticket: int, now: float) -> None:
        """A request is over: finished, aborted, refused by the replica, or lost with it. Idempotent."""
        flight = self._flights.pop(ticket, None)
        if flight is not None:
            if not flight.started:
                self.optimistic.settle(flight.replica, flight.hashes, now)
            flight.book.finished(flight)

    def _default_rate(self) -> float:
        """Prefill rate of replicas that have not measured theirs: the mean of the others'."""
        rates = [rate for replica in self._replicas.values() if (rate := replica.book.load.prefill_rate)]
        return sum(rates) / len(rates) if rates else DEFAULT_PREFILL_RATE

    def _choose(self, request: RouteRequest, default_rate: float, now: float) -> Decision | Refusal:
        cached = self.index.match(request.hashes)
        hits = self.optimistic.extend(request.hashes, cached)
        exclude = request.exclude
        able = False
        costs: list[tuple[float, _Replica]] = []
        best = math.inf
        for name, replica in self._replicas.items():
            if replica.info.draining or name in exclude:
                continue
            able = True
            if replica.book.changed:
                replica.refresh()
            if not replica.open:
                continue
            hit = hits.get(name, 0)
            if hit:
                page_size = replica.info.page_size
                cost = replica.cost(request, hit * page_size, (hit - cached.get(name, 0)) * page_size, default_rate)
            else:
                cost = replica.cost(request, 0, 0, default_rate)
            costs.append((cost, replica))
            best = min(best, cost)
        if not costs:
            return Refusal("full", self._retry_after(exclude, default_rate)) if able else Refusal("none", 1.0)
        limit = best + (SESSION_SLACK_S if request.session else TIE_S)
        equal = [pair for pair in costs if pair[0] <= limit]
        if request.session:
            # Rendezvous hashing: every ingress prefers the same replica for a session, and a replica that comes or goes
            # moves only its own sessions.
            cost, chosen = max(equal, key=lambda pair: xxh3_64_intdigest(f"{request.session}\0{pair[1].info.replica}".encode()))
        else:
            cost, chosen = self._random.choice(equal)
        return self._commit(request, chosen, hits.get(chosen.info.replica, 0), cost, now)

    def _commit(self, request: RouteRequest, replica: _Replica, hit: int, cost: float, now: float) -> Decision:
        info = replica.info
        tokens = max(1, request.num_tokens - hit * info.page_size)
        new_hashes = list(request.hashes[hit:])
        self.optimistic.add(info.replica, new_hashes, now)
        ticket = next(self._tickets)
        self._flights[ticket] = replica.book.sent(now, tokens, request.sequences, new_hashes)
        return Decision(info.replica, info.epoch, hit, cost, ticket, tokens, new_hashes)

    def _retry_after(self, exclude: frozenset[str], default_rate: float) -> float:
        """When half of the shortest queue will have been worked off, in seconds, within reason."""
        able = [r for name, r in self._replicas.items() if not r.info.draining and name not in exclude]
        shortest = min(replica.queue_seconds(default_rate) for replica in able)
        return min(60.0, max(1.0, shortest / 2))

    def _forget(self, replica: str) -> None:
        if self._replicas.pop(replica, None) is not None:
            self.optimistic.drop_replica(replica)
