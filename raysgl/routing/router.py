"""Which replica a request goes to: the one where it costs everybody together the least seconds (`board`).

Rates are the replicas' own measurements. Ties are broken at random, so that nothing piles up on the first replica; near-ties of a
prompt that no replica knows are broken by its first page, so that all ingresses begin a new prefix at the same replica, though they learn of
each other's decisions late. There is no switch that turns affinity off: a hot prefix spreads when, and only when, recomputing it elsewhere
costs less than waiting for it.

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

import numpy as np
from xxhash import xxh3_64_intdigest

from raysgl.messages import CacheCleared, KVEvents, Load
from raysgl.routing.board import Board
from raysgl.routing.index import Applied, PrefixIndex
from raysgl.routing.load_book import Flight, LoadBook
from raysgl.routing.messages import ReplicaInfo
from raysgl.routing.optimistic import OptimisticPages
from raysgl.routing.policies import RULES
from raysgl.routing.sharded_index import ShardedIndex

TIE_S = 1e-6
SESSION_SLACK_S = 0.01
"""Costs that differ by less than these are equal, without and with a session to keep in its place."""

NEW_SLACK = 0.3
"""Share of the cost by which replicas may differ to be as good as each other for a prompt of which no page is known. (docs/routing.md: 0.1
is too little for two ingresses to agree, 0.5 no better. Where pages are known it must be 0: work would be done twice.)"""

FEW_BITS = 6
"""Up to so many replicas of a run are taken one by one, more at once by numpy."""


@dataclass(slots=True)
class RouteRequest:
    """A prompt to place. hashes: its page hashes. num_tokens: of the prompt. sequences: `n`. session: an affinity key or "".

    exclude: replicas not to use, such as one that just refused or lost this request. accepted: queues that are full for
    others are no reason to refuse it.
    """

    hashes: Sequence[int]
    num_tokens: int
    sequences: int = 1
    session: str = ""
    exclude: frozenset[str] = frozenset()
    accepted: bool = False


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
    asleep: all have memory released. none: there is none that is alive, not draining and not excluded."""

    reason: Literal["full", "asleep", "none"]
    retry_after: float


class _Replica:
    """A replica and its load."""

    __slots__ = ("book", "info")

    def __init__(self, info: ReplicaInfo, changed: set[LoadBook]):
        self.info = info
        self.book = LoadBook(info.replica, changed)


class _Rows:
    """Which row of the board each bit of an index's masks stands for, as an array; -1: none."""

    def __init__(self) -> None:
        self._index: PrefixIndex | None = None
        self._layout = -1
        self._rows = np.zeros(0, dtype=np.int64)

    def of(self, index: PrefixIndex, board: Board) -> np.ndarray:
        """Made anew where bits have changed hands."""
        if self._index is not index or self._layout != index.layout:
            self._index, self._layout = index, index.layout
            self._rows = np.full(index.num_bits, -1, dtype=np.int64)
            for name, row in board.row_of.items():
                if (bit := index.bit_of(name)) >= 0:
                    self._rows[bit] = row
        return self._rows


class Router:
    """Decides for one model, from an index and load reports. Not thread safe. Times are `time.monotonic()`, given by the caller.

    shards: of the coordinator. Who is there is the first one's to say, and so is what its part of the index holds; the other parts are
    told of replicas by their own shards (`self.index.parts`). policy: another rule than raysgl's own (`raysgl.routing.policies`).
    """

    def __init__(self, seed: int | None = None, shards: int = 1, policy: str = "raysgl"):
        self.index = ShardedIndex(shards)
        self._rule = RULES[policy]() if policy != "raysgl" else None
        self.optimistic = OptimisticPages()
        self._replicas: dict[str, _Replica] = {}
        # Derived from the replicas: None after one came, went or changed sides.
        self._board: Board | None = None
        self._changed: set[LoadBook] = set()
        self._rows_of_bits: list[_Rows] = []
        self._flights: dict[int, Flight] = {}
        self._tickets = itertools.count(1)
        self._random = random.Random(seed)

    # ------------------------------------------------------------------ what is known

    def join(self, info: ReplicaInfo, index_too: bool = True) -> None:
        """A replica (or a new life of one). index_too=False where the index already knows it."""
        self._forget(info.replica)
        self._replicas[info.replica] = _Replica(info, self._changed)
        self._board = None
        if index_too:
            self.index.parts[0].add(info.replica, info.epoch)

    def leave(self, replica: str, epoch: int) -> None:
        """A life of a replica has ended, and so has any before it. Does nothing if a later one is known."""
        known = self.epoch(replica)
        if known is not None and known <= epoch:
            self._forget(replica)
            self.index.parts[0].drop(replica)

    def drain(self, replica: str, epoch: int, draining: bool = True) -> None:
        """A replica takes no more requests, or does so again."""
        if self.epoch(replica) == epoch:
            self._replicas[replica].info.draining = draining
            self._board = None

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
            self._replicas[replica].book.sent(now, tokens, 1, hashes, mine=False)
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
        """Take over from a router that this one replaces: its tickets, the other shards' parts of the index, and the loads and optimistic
        pages of the lives both know."""
        self._flights, self._tickets = previous._flights, previous._tickets
        self.optimistic = previous.optimistic
        self.index.parts[1:] = previous.index.parts[1:]
        self._board = None
        for name, known in previous._replicas.items():
            if self.epoch(name) == known.info.epoch:
                self._replicas[name].book = known.book
                known.book.changed = self._changed
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
        board = self._fresh_board()
        hits, coming = self._hits(request.hashes)
        costs = board.costs(request.num_tokens, request.sequences, hits, coming)
        if not board.all_able or request.exclude:
            able = board.able.copy()
            for name in request.exclude:
                if name in board.row_of:
                    able[board.row_of[name]] = False
            costs = np.where(able, costs, np.inf)
        else:
            able = board.able
        some = able
        if not board.all_awake:
            able = able & ~board.asleep
            costs = np.where(able, costs, np.inf)
        if not request.accepted:
            costs = np.where(board.full, np.inf, costs)
        best = costs.min(initial=math.inf)
        if best == math.inf and able.any():
            return Refusal("full", self._retry_after(board, able))
        if best == math.inf:
            return Refusal("asleep" if some.any() else "none", 1.0)
        row = self._row(request, hits, costs, float(best))
        hit = 0 if hits is None else int(hits[row])
        return self._commit(request, self._replicas[board.infos[row].replica], hit, float(costs[row]), now)

    def _row(self, request: RouteRequest, hits: np.ndarray | None, costs: np.ndarray, best: float) -> int:
        """The replica chosen, of those whose cost is finite. best: the least cost."""
        board = self._board
        assert board is not None
        if self._rule is not None:
            scores = np.where(costs < np.inf, self._rule(board, len(request.hashes), hits), np.inf)
            equal = (scores == scores.min()).nonzero()[0]
            return int(equal[int(self._random.random() * len(equal))])
        # Rendezvous hashing: every ingress prefers the same replica for a session or a new prefix, and a replica that comes or goes moves
        # only its own.
        new = bool(request.hashes) and (hits is None or not hits[int(costs.argmin())])
        slack = NEW_SLACK * best if new else 0.0
        if request.session:
            equal = (costs <= best + slack + SESSION_SLACK_S).nonzero()[0]
            return board.rendezvous(equal, xxh3_64_intdigest(request.session.encode()))
        if new:
            equal = (costs <= best + slack + TIE_S).nonzero()[0]
            return board.rendezvous(equal, request.hashes[0])
        equal = (costs <= best + TIE_S).nonzero()[0]
        return int(equal[int(self._random.random() * len(equal))])

    def _fresh_board(self) -> Board:
        board = self._board
        if board is None:
            known = list(self._replicas.values())
            board = self._board = Board([(replica.info, replica.book) for replica in known])
            self._changed.update(replica.book for replica in known)
            self._rows_of_bits = [_Rows() for _ in self.index.parts]
        if self._changed:
            board.refresh(self._changed)
        return board

    def _hits(self, hashes: Sequence[int]) -> tuple[np.ndarray | None, np.ndarray | None]:
        """Leading pages that each replica has or will have, and those of them only to come. None where all are 0."""
        board = self._board
        assert board is not None
        number = self.index.part_of(hashes)
        part = self.index.parts[number]
        runs = part.runs(hashes)
        longer = self.optimistic.extend(hashes, runs, part.bit_of)
        if not runs and not longer:
            return None, None
        # One place more than replicas: for bits of replicas that only the index knows.
        hits = np.zeros(len(board.infos) + 1)
        rows = self._rows_of_bits[number].of(part, board)
        for mask, pages in runs:
            if mask.bit_count() <= FEW_BITS:
                while mask:
                    low = mask & -mask
                    hits[rows[low.bit_length() - 1]] = pages
                    mask ^= low
            else:
                packed = np.frombuffer(mask.to_bytes((len(rows) + 7) // 8, "little"), dtype=np.uint8)
                hits[rows[np.unpackbits(packed, bitorder="little", count=len(rows)).nonzero()[0]]] = pages
        if not longer:
            return hits[:-1], None
        coming = np.zeros(len(board.infos))
        for name, cached, pages in longer:
            row = board.row_of[name]
            coming[row] = pages - cached
            hits[row] = pages
        return hits[:-1], coming

    def _commit(self, request: RouteRequest, replica: _Replica, hit: int, cost: float, now: float) -> Decision:
        info = replica.info
        tokens = max(1, request.num_tokens - hit * info.page_size)
        new_hashes = list(request.hashes[hit:])
        self.optimistic.add(info.replica, new_hashes, now)
        ticket = next(self._tickets)
        self._flights[ticket] = replica.book.sent(now, tokens, request.sequences, new_hashes)
        return Decision(info.replica, info.epoch, hit, cost, ticket, tokens, new_hashes)

    def _retry_after(self, board: Board, able: np.ndarray) -> float:
        """When half of the shortest queue will have been worked off, in seconds, within reason."""
        shortest = min(board.queue_seconds(row) for row in able.nonzero()[0].tolist())
        return min(60.0, max(1.0, shortest / 2))

    def _forget(self, replica: str) -> None:
        if self._replicas.pop(replica, None) is not None:
            self._board = None
            self.optimistic.drop_replica(replica)
