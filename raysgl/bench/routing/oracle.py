"""Deciding with perfect and instant knowledge: every cache, every queue, every remaining output length; but not what will arrive.

No single rule is best with that knowledge, so the oracle of a table is the best of three, for each cell on its own:

    EarliestEnd    greedy: where this request itself ends soonest
    LeastDelay     where all requests together are delayed least: this one, and those that it holds up
    Thrifty        where it costs the replica least work, among those where it will meet its targets
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from raysgl.bench.routing.policies import Policy
from raysgl.bench.routing.prefixes import Edge
from raysgl.bench.routing.replica import Replica
from raysgl.bench.routing.requests import Request

if TYPE_CHECKING:
    from raysgl.bench.routing.cluster import Cluster


class _Watched(dict):
    """`EdgeCache.held` that keeps a column of the oracle's matrix up to date."""

    def __init__(self, column: np.ndarray):
        super().__init__()
        self._column = column

    def __setitem__(self, edge: Edge, pages: int) -> None:
        super().__setitem__(edge, pages)
        self._column[edge.index] = pages

    def __delitem__(self, edge: Edge) -> None:
        super().__delitem__(edge)
        self._column[edge.index] = 0


class _Oracle(Policy):
    """What all three know. Arrays are over replicas."""

    def __init__(self, replicas: int, seed: int):
        super().__init__(replicas, seed)
        zeros = [np.zeros(replicas) for _ in range(8)]
        self.queued, self.rows, self.waiting, self.context, self.ends_at, self.room, self.release, self.demand = zeros
        self._sent: dict[int, tuple[int, float, float, list[int]]] = {}
        self._sent_tokens = np.zeros(replicas)
        self._sent_pages = np.zeros(replicas)
        self._unstarted = np.zeros(replicas)

    def start(self, cluster: Cluster) -> None:
        self.calibration = cluster.calibration
        self.targets = cluster.targets
        edges = len(cluster.workload.tree.edges)
        self._held = np.zeros((edges, self.replicas), dtype=np.int32)
        self._coming = np.zeros((edges, self.replicas), dtype=np.int16)
        self._sizes = np.array([edge.size for edge in cluster.workload.tree.edges], dtype=np.int32)[:, None]
        for replica in cluster.replicas:
            replica.cache.held = _Watched(self._held[:, replica.row])
            self.touched(replica)

    def touched(self, replica: Replica) -> None:
        row = replica.row
        self.queued[row] = -sum(s.computed - max(0, s.hit_tokens) for s in replica.prefilling)
        self.rows[row] = len(replica.decoding)
        self.context[row] = replica.context
        self.ends_at[row] = replica.ends_at
        if replica._run is not None:
            self.ends_at[row] = 0.0  # a run can be cut at the next step
        self.room[row] = replica.free_pages + replica.cache.evictable_pages
        in_use = replica.own + replica.cache.locked_pages
        # Pages that come free per step: what is in use, over twice the mean of the remaining steps.
        left = [order_end[0] - replica.decoded for order_end in replica._ends[:16]]
        self.release[row] = in_use / max(8.0, 2 * sum(left) / len(left)) if left else 1e9

    def choose(self, request: Request, now: float) -> int:
        cal = self.calibration
        path = [edge.index for edge in request.path if edge.depth < request.match_pages]
        hits = self._hits(path, request.match_pages)
        new = request.num_tokens - hits * cal.page_size
        ahead = np.maximum(self._sent_tokens + self.queued, 0)
        tokens = ahead + new
        step = cal.overhead_s + self.context * cal.kv_seconds
        steps = np.ceil(tokens / np.maximum(cal.page_size, cal.step_tokens - self.rows))
        rest = np.maximum(cal.weights_s, 0.0)
        prefill = np.maximum(tokens / cal.prefill_rate, steps * rest) + steps * step
        short = self._sent_pages + (request.num_tokens + request.output_len) / cal.page_size - hits - self.room
        decode_step = step + (cal.weights_s**3 + (self.rows / cal.prefill_rate) ** 3) ** (1 / 3)
        begin = np.maximum(self.ends_at - now, np.where(self.rows > 0, decode_step / 2, 0.0))
        over = self._unstarted + self.rows + 1 - cal.max_running
        wait = np.where(short > 0, short / self.release * decode_step, 0.0) + np.where(over > 0, over * decode_step, 0.0)
        ttft = begin + np.maximum(prefill, wait)
        tpot = decode_step + (self._unstarted * request.num_tokens + request.num_tokens) * cal.kv_seconds
        cost = self.cost(request, new / cal.prefill_rate, ttft, tpot)
        row = self.random.choice(np.flatnonzero(cost <= cost.min() + 1e-9).tolist())
        self._commit(request, row, int(hits[row]), path)
        return row

    def cost(self, request: Request, work: np.ndarray, ttft: np.ndarray, tpot: np.ndarray) -> np.ndarray:
        """To be minimised. work: seconds to compute what is not cached. ttft, tpot: what the request would see. All [replicas]."""
        raise NotImplementedError

    def first_token(self, request: Request, replica: Replica, now: float) -> None:
        row, tokens, pages, edges = self._sent.pop(request.index)
        self._sent_tokens[row] -= tokens
        self._sent_pages[row] -= pages
        self._unstarted[row] -= 1
        self._coming[edges, row] -= 1
        self.touched(replica)

    def _hits(self, path: list[int], limit: int) -> np.ndarray:
        """Pages of a path that each replica has, or will have computed for another before this one's turn."""
        if not path:
            return np.zeros(self.replicas)
        sizes = self._sizes[path]
        held = np.where(self._coming[path] > 0, sizes, self._held[path])
        whole = np.logical_and.accumulate(held == sizes, axis=0)
        held[1:] *= whole[:-1]
        return np.minimum(held.sum(axis=0), limit)

    def _commit(self, request: Request, row: int, hit: int, path: list[int]) -> None:
        edges = [edge.index for edge in request.path[: len(path)] if edge.depth + edge.size > hit]
        tokens = request.num_tokens - hit * self.calibration.page_size
        pages = request.num_tokens / self.calibration.page_size - hit
        self._sent[request.index] = row, tokens, pages, edges
        self._sent_tokens[row] += tokens
        self._sent_pages[row] += pages
        self._unstarted[row] += 1
        self._coming[edges, row] += 1


class EarliestEnd(_Oracle):
    """Greedy."""

    def cost(self, request: Request, work: np.ndarray, ttft: np.ndarray, tpot: np.ndarray) -> np.ndarray:
        return ttft + request.output_len * tpot


class LeastDelay(_Oracle):
    """All requests together: the decoding rows stand still for the prefill, and each of their steps gets longer."""

    def cost(self, request: Request, work: np.ndarray, ttft: np.ndarray, tpot: np.ndarray) -> np.ndarray:
        own = ttft + request.output_len * tpot
        longer = request.output_len * (request.num_tokens * self.calibration.kv_seconds)
        return own + (self.rows + self._unstarted) * (work + longer)


class Thrifty(_Oracle):
    """Least work among replicas where the targets will be met; where none will, the earliest."""

    def cost(self, request: Request, work: np.ndarray, ttft: np.ndarray, tpot: np.ndarray) -> np.ndarray:
        late = (ttft > 0.7 * self.targets.ttft) | (tpot > 0.9 * self.targets.tpot)
        return np.where(late, 1e3 + ttft + work, work + 0.1 * ttft + 0.1 * request.output_len * tpot)


ORACLES: tuple[type[_Oracle], ...] = (EarliestEnd, LeastDelay, Thrifty)
