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
    __slots__ = ("book", "info")

    def __init__(self, info: ReplicaInfo):
        self.info = info
        self.book = LoadBook(info.replica)


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
        """A life of a replica has ended. Does nothing if that life is not the known one."""
        if self.epoch(replica) == epoch:
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
            else:
                self.optimistic.drop_replica(name)

    # ------------------------------------------------------------------ deciding

    def choose(self, requests: Iterable[RouteRequest], now: float) -> list[Decision | Refusal]:
        """Place requests that arrived together, in order. Each one placed counts when the next is."""
        self.optimistic.expire(now)
        return [self._choose(request, now) for request in requests]

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

    def _choose(self, request: RouteRequest, now: float) -> Decision | Refusal:
        able = [r for name, r in self._replicas.items() if not r.info.draining and name not in request.exclude]
        if not able:
            return Refusal("none", 1.0)
        open_ = [r for r in able if r.book.accepts(r.info.max_queued)]
        if not open_:
            return Refusal("full", self._retry_after(able))
        cached = self.index.match(request.hashes)
        hits = self.optimistic.extend(request.hashes, cached)
        default_rate = self._default_prefill_rate()
        costs = [(self._cost(r, request, cached, hits, default_rate), r) for r in open_]
        best = min(cost for cost, _ in costs)
        slack = SESSION_SLACK_S if request.session else TIE_S
        equal = [pair for pair in costs if pair[0] <= best + slack]
        if request.session:
            # Rendezvous hashing: every ingress prefers the same replica for a session, and a replica that comes or goes
            # moves only its own sessions.
            cost, chosen = max(equal, key=lambda pair: xxh3_64_intdigest(f"{request.session}\0{pair[1].info.replica}".encode()))
        else:
            cost, chosen = self._random.choice(equal)
        return self._commit(request, chosen, hits.get(chosen.info.replica, 0), cost, now)

    def _cost(
        self, replica: _Replica, request: RouteRequest, cached: dict[str, int], hits: dict[str, int], default_rate: float
    ) -> float:
        """Seconds, as at the top of the file."""
        name, page_size = replica.info.replica, replica.info.page_size
        book, load = replica.book, replica.book.load
        hit = hits.get(name, 0)
        coming = (hit - cached.get(name, 0)) * page_size
        uncached = max(1, request.num_tokens - hit * page_size)
        rate = load.prefill_rate or default_rate
        cost = (uncached + max(0, book.queued_tokens - coming)) / rate
        running, waiting = book.running, book.waiting
        decode_rate = load.decode_rate or DEFAULT_DECODE_RATE
        if load.max_running:
            ahead = max(0, running + waiting + request.sequences - load.max_running)
            cost += ahead * EXPECTED_OUTPUT / decode_rate
        if load.total_pages:
            needed = uncached + EXPECTED_OUTPUT * request.sequences + book.queued_tokens
            cost += max(0, needed - (load.free_pages + load.cached_pages) * page_size) / decode_rate
        return cost + PACE_STEPS * load.step_seconds * running / max(1, load.running)

    def _commit(self, request: RouteRequest, replica: _Replica, hit: int, cost: float, now: float) -> Decision:
        info = replica.info
        tokens = max(1, request.num_tokens - hit * info.page_size)
        new_hashes = list(request.hashes[hit:])
        self.optimistic.add(info.replica, new_hashes, now)
        ticket = next(self._tickets)
        self._flights[ticket] = replica.book.sent(now, tokens, request.sequences, new_hashes)
        return Decision(info.replica, info.epoch, hit, cost, ticket, tokens, new_hashes)

    def _default_prefill_rate(self) -> float:
        """For replicas without a measurement: the mean of the others'."""
        rates = [r.book.load.prefill_rate for r in self._replicas.values() if r.book.load.prefill_rate]
        return sum(rates) / len(rates) if rates else DEFAULT_PREFILL_RATE

    def _retry_after(self, replicas: list[_Replica]) -> float:
        """When half of the shortest queue will have been worked off, in seconds, within reason."""

        def seconds(replica: _Replica) -> float:
            book, load = replica.book, replica.book.load
            prefill = book.queued_tokens / (load.prefill_rate or self._default_prefill_rate())
            return max(prefill, book.waiting * EXPECTED_OUTPUT / (load.decode_rate or DEFAULT_DECODE_RATE))

        return min(60.0, max(1.0, min(map(seconds, replicas)) / 2))

    def _forget(self, replica: str) -> None:
        if self._replicas.pop(replica, None) is not None:
            self.optimistic.drop_replica(replica)
