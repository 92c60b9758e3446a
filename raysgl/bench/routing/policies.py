"""The others: what peers' routers do, by their published rules (reference/serving-systems.md, 1.24 and Appendix C).

They are given every advantage: one router that sees all requests, knows at once what is in flight, and loses nothing.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import numpy as np

from raysgl.bench.routing.prefixes import Edge
from raysgl.bench.routing.replica import Replica
from raysgl.bench.routing.requests import Request
from raysgl.messages import KVEvents
from raysgl.routing import PrefixIndex

if TYPE_CHECKING:
    from raysgl.bench.routing.cluster import Cluster


class Policy:
    """Decides, and is told what happens. wants_events: KV events and loads are published to it."""

    wants_events = False

    def __init__(self, replicas: int, seed: int):
        self.replicas = replicas
        self.random = random.Random(seed)

    def start(self, cluster: Cluster) -> None:
        """Before the first arrival."""

    def choose(self, request: Request, now: float) -> int | None:
        """The replica's row, or None to refuse."""
        raise NotImplementedError

    def first_token(self, request: Request, replica: Replica, now: float) -> None:
        """The first token has come back."""

    def finished(self, request: Request, replica: Replica, now: float) -> None:
        """The last one has."""

    def events(self, batch: KVEvents) -> None:
        """A batch has come, after its delay."""

    def touched(self, replica: Replica) -> None:
        """Something changed at a replica, this very moment; for the oracle only."""


class RoundRobin(Policy):
    """One after the other."""

    def __init__(self, replicas: int, seed: int):
        super().__init__(replicas, seed)
        self._next = self.random.randrange(replicas)

    def choose(self, request: Request, now: float) -> int:
        self._next = (self._next + 1) % self.replicas
        return self._next


class LeastLoaded(Policy):
    """Fewest requests in flight, ties at random."""

    def __init__(self, replicas: int, seed: int):
        super().__init__(replicas, seed)
        self.in_flight = np.zeros(replicas, dtype=np.int64)

    def choose(self, request: Request, now: float) -> int:
        return self.send(self.least())

    def least(self) -> int:
        return self.random.choice(np.flatnonzero(self.in_flight == self.in_flight.min()).tolist())

    def send(self, row: int) -> int:
        self.in_flight[row] += 1
        return row

    def finished(self, request: Request, replica: Replica, now: float) -> None:
        self.in_flight[replica.row] -= 1


class PowerOfTwo(LeastLoaded):
    """The less loaded of two drawn at random (Ray Serve's default)."""

    def choose(self, request: Request, now: float) -> int:
        one, other = self.random.sample(range(self.replicas), 2) if self.replicas > 1 else (0, 0)
        return self.send(one if self.in_flight[one] <= self.in_flight[other] else other)


class CacheAware(LeastLoaded):
    """SGLang gateway's `cache_aware`: an approximate tree of what was sent where; affinity off while the fleet is out of balance.

    The tree is kept per page instead of per character, and not trimmed (its limit of 2^26 characters a worker is beyond these runs).
    """

    CACHE_THRESHOLD, BALANCE_ABS, BALANCE_REL = 0.3, 64, 1.5

    def __init__(self, replicas: int, seed: int):
        super().__init__(replicas, seed)
        self._owner: dict[Edge, int] = {}

    def choose(self, request: Request, now: float) -> int:
        most, fewest = self.in_flight.max(), self.in_flight.min()
        if most - fewest > self.BALANCE_ABS and most > self.BALANCE_REL * fewest:
            return self._send_and_insert(request, self.least())
        matched, worker = 0, -1
        for edge in request.path:
            owner = self._owner.get(edge)
            if owner is None or edge.depth >= request.match_pages:
                break
            matched, worker = edge.depth + edge.size, owner
        ratio = matched * (request.num_tokens / max(1, request.match_pages)) / request.num_tokens
        return self._send_and_insert(request, worker if worker >= 0 and ratio > self.CACHE_THRESHOLD else self.least())

    def _send_and_insert(self, request: Request, row: int) -> int:
        # Of the workers that have a prefix, the tree answers with the one that used it last.
        for edge in request.path:
            if edge.depth < request.match_pages:
                self._owner[edge] = row
        return self.send(row)


class DynamoKV(Policy):
    """NVIDIA Dynamo's KV router with its defaults: overlap_weight * missing prompt blocks + active blocks, lowest wins.

    Its index follows KV events; active blocks are counted by the router for each request from when it is sent to its end, and missing
    blocks of requests without a first token count as load too.
    """

    wants_events = True
    OVERLAP_WEIGHT = 1.0

    def __init__(self, replicas: int, seed: int):
        super().__init__(replicas, seed)
        self._index = PrefixIndex()
        self._prefill = np.zeros(replicas)
        self._decode = np.zeros(replicas)
        self._sent: dict[int, tuple[int, float, float]] = {}
        self._page_size = 16

    def start(self, cluster: Cluster) -> None:
        self._page_size = cluster.calibration.page_size
        for row in range(self.replicas):
            self._index.add(f"r{row}", 1)

    def events(self, batch: KVEvents) -> None:
        self._index.apply(batch)

    def choose(self, request: Request, now: float) -> int:
        blocks = request.num_tokens / self._page_size
        overlap = np.zeros(self.replicas)
        for name, pages in self._index.match(request.hashes).items():
            overlap[int(name[1:])] = pages
        cost = self.OVERLAP_WEIGHT * (self._prefill + blocks - overlap) + self._decode + blocks
        row = self.random.choice(np.flatnonzero(cost == cost.min()).tolist())
        missing = max(0.0, blocks - overlap[row])
        self._prefill[row] += missing
        self._decode[row] += blocks
        self._sent[request.index] = (row, missing, blocks)
        return row

    def first_token(self, request: Request, replica: Replica, now: float) -> None:
        row, missing, blocks = self._sent[request.index]
        self._prefill[row] -= missing
        self._sent[request.index] = (row, 0.0, blocks)

    def finished(self, request: Request, replica: Replica, now: float) -> None:
        row, missing, blocks = self._sent.pop(request.index)
        self._prefill[row] -= missing
        self._decode[row] -= blocks
