"""What one more request would cost at each replica, as arrays over all of them: a decision is a dozen numpy operations.

The cost is in seconds, and it is everybody's, not only the new request's own:

    own work    uncached prompt tokens / prefill rate
    wait        WAIT_WEIGHT * prompt tokens queued ahead / prefill rate; waiting for a place to run and for KV pages
    own pace    some decode steps, as far as the replica's batch makes them slower; more where it is much slower than others'
    others      own work, once for every request that it holds up there

The last term is what keeps a cluster efficient under load (docs/routing.md): without it every request takes the quickest way for
itself, recomputes prefixes on idle replicas, and pushes out what others would have hit. On an idle cluster it is zero. How many it
holds up is taken to be the mean of the requests at the replica now and of those at all replicas: until the work is done, an
unusual number has come half way back to the usual one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from xxhash import xxh3_64_intdigest

from raysgl.routing.load_book import LoadBook
from raysgl.routing.messages import ReplicaInfo

DEFAULT_PREFILL_RATE = 2000.0
"""Tokens/s of a replica when no replica has measured any yet. Only ratios matter then, so a small CPU's figure will do."""

DEFAULT_DECODE_RATE = 100.0
"""Tokens/s of all sequences of a replica, before any measurement."""

EXPECTED_OUTPUT = 128
"""Output tokens assumed of a request, to judge when places and pages come free."""

WAIT_WEIGHT = 3.0
"""A queue costs this request its wait, and whoever arrives while it lasts waits for this one: wait * arrivals per second * work each =
wait * utilisation, which is near 1 where there is a queue and above it while the queue grows. (docs/routing.md: 2 and 4 give the same
goodput within 1 %; 1 has longer tails, at 8 affinity suffers.)"""

PACE_STEPS = EXPECTED_OUTPUT
"""Decode steps whose slowness counts in the cost: those that the request will stay for. Without them a long hot prefix gathers so many
rows at its replica that all of them miss their pace (docs/routing.md)."""

FLAT_ROWS = 16
"""A step of fewer rows takes hardly longer than one of a single row, so up to there a busy batch is no slower than a quiet one."""


SLOW = 2.0
SLOW_EXPONENT = 4
"""Where steps take more than SLOW times those of the mean busy replica, pace counts (steps / SLOW / mean) ** SLOW_EXPONENT times. A prefix
that a fifth of all requests begin with must be computed a second time before its replica is too slow for everybody, and no
single request is a reason to: the others that will find it there are not in its cost. (docs/routing.md: from 1.5 times on, chat at 64
replicas loses 1 %, since some are always that much slower there.)"""


class Board:
    """Rows are replicas in the order given. Reads load books; nothing here changes one."""

    def __init__(self, replicas: Sequence[tuple[ReplicaInfo, LoadBook]]):
        count = len(replicas)
        self.infos = [info for info, _ in replicas]
        self.books = [book for _, book in replicas]
        self.row_of = {info.replica: row for row, info in enumerate(self.infos)}
        self._row_of_book = {id(book): row for row, book in enumerate(self.books)}
        self._names = np.array([xxh3_64_intdigest(info.replica.encode()) for info in self.infos], dtype=np.uint64)
        self.page_size = np.array([info.page_size for info in self.infos], dtype=np.float64)
        self.able = np.array([not info.draining for info in self.infos], dtype=bool)
        self.all_able = bool(self.able.all())
        self.full = np.zeros(count, dtype=bool)
        self.asleep = np.zeros(count, dtype=bool)
        """Memory is released."""
        self.all_awake = True
        self._measured = np.zeros(count)
        self._per_token = np.zeros(count)
        self._queued = np.zeros(count)
        self.requests = np.zeros(count)
        """Running and waiting."""
        self._base = np.zeros(count)
        self._over = np.zeros(count)
        self._limited = np.zeros(count, dtype=bool)
        self._room = np.zeros(count)
        self._per_decode = np.zeros(count)
        self._step = np.zeros(count)
        self._pace = np.zeros(count)
        self._slowness: np.ndarray | None = None
        self._slowness_known = False
        self._num_measured = 0
        self._all_requests = 0.0
        # A lower bound of the rooms, so that they are looked at only where one may be too small.
        self._least_room = math.inf

    def refresh(self, changed: set[LoadBook]) -> None:
        """Take in the books that changed, and empty the set."""
        for book in changed:
            row = self._row_of_book.get(id(book))
            if row is not None:
                self._refresh(row, book)
        if not self.all_awake:
            self.all_awake = not self.asleep.any()
        changed.clear()

    def _refresh(self, row: int, book: LoadBook) -> None:
        load = book.load
        running, waiting = book.occupancy()
        queued = book.queued_tokens
        page_size = self.infos[row].page_size
        if load.prefill_rate != self._measured[row] or not self._per_token[row]:
            self._set_rate(row, load.prefill_rate)
        per_decode = 1 / (load.decode_rate or DEFAULT_DECODE_RATE)
        over = running + waiting + 1 - load.max_running if load.max_running > 0 else 0
        # Steps that prefill are no measure of how slow decoding is; the rate is of decode steps alone.
        step = min(load.step_seconds, load.running * per_decode) if load.decode_rate else load.step_seconds
        pace = fixed = PACE_STEPS * step * running / (FLAT_ROWS + running)
        if over > 0:
            fixed += over * EXPECTED_OUTPUT * per_decode
        # A place to run is taken even where nobody may wait.
        self.full[row] = load.full or not (waiting < self.infos[row].max_queued or (waiting == 0 and over <= 0))
        self.asleep[row] = bool(load.released)
        self.all_awake = self.all_awake and not load.released
        room = (load.free_pages + load.cached_pages) * page_size - queued if load.total_pages else math.inf
        self._all_requests += running + waiting - self.requests[row]
        self.requests[row] = running + waiting
        self._queued[row] = queued
        self._base[row] = fixed
        self._pace[row] = pace
        self._step[row] = step
        self._slowness_known = False
        self._over[row] = over
        self._limited[row] = load.max_running > 0
        self._room[row] = room
        self._least_room = min(self._least_room, room)
        self._per_decode[row] = per_decode

    def _set_rate(self, row: int, rate: float) -> None:
        """Replicas that have not measured their rate get the mean of the others'."""
        self._num_measured += (rate > 0) - bool(self._measured[row] > 0)
        self._measured[row] = rate
        if self._num_measured == len(self.infos):
            self._per_token[row] = 1 / rate
            return
        known = self._measured[self._measured > 0]
        default = known.mean() if len(known) else DEFAULT_PREFILL_RATE
        self._per_token[:] = 1 / np.where(self._measured > 0, self._measured, default)

    def costs(
        self, num_tokens: int, sequences: int, hit_pages: np.ndarray | None, coming_pages: np.ndarray | None
    ) -> np.ndarray:
        """Seconds, [replicas] float64. Replicas that are not `able`, or `full`, are not treated specially.

        hit_pages: pages cached or about to be; coming_pages: those of them that are only about to be. None: none anywhere.
        """
        if not self.infos:
            return np.zeros(0)
        uncached: np.ndarray | np.float64
        if hit_pages is None:
            uncached = np.float64(max(1, num_tokens))
            ahead = self._queued
        else:
            uncached = np.maximum(num_tokens - hit_pages * self.page_size, 1.0)
            ahead = self._queued if coming_pages is None else np.maximum(self._queued - coming_pages * self.page_size, 0.0)
        held_up = 0.5 * self.requests + (1 + 0.5 * self._all_requests / len(self.infos))
        cost = (uncached * held_up + WAIT_WEIGHT * ahead) * self._per_token + self._base
        if (slowness := self._slow()) is not None:
            cost += slowness
        if sequences > 1:
            more = self._over + (sequences - 1)
            already = np.maximum(self._over, 0.0)
            cost += np.where(self._limited, np.maximum(more, 0.0) - already, 0.0) * (EXPECTED_OUTPUT * self._per_decode)
        most = num_tokens + EXPECTED_OUTPUT * sequences
        if most > self._least_room:
            self._least_room = float(self._room.min())
            if most > self._least_room:
                short = uncached + EXPECTED_OUTPUT * sequences - self._room
                cost += np.maximum(short, 0.0) * self._per_decode
        return cost

    def _slow(self) -> np.ndarray | None:
        """What pace costs beyond its plain seconds; None if nothing. [replicas]"""
        if self._slowness_known:
            return self._slowness
        self._slowness_known, self._slowness = True, None
        steps = self._step
        busy = int(np.count_nonzero(steps))
        limit = SLOW * float(steps.sum()) / busy if busy else 0.0
        if busy > 1 and float(steps.max()) > limit:
            self._slowness = self._pace * (np.maximum(steps / limit, 1.0) ** SLOW_EXPONENT - 1.0)
        return self._slowness

    def rendezvous(self, rows: np.ndarray, key: int) -> int:
        """The one of some rows that is first in an order which depends on the key and the replicas' names alone."""
        if len(rows) == 1:
            return int(rows[0])
        mixed = (self._names[rows] ^ np.uint64(key)) * np.uint64(0x9E3779B97F4A7C15)
        mixed ^= mixed >> np.uint64(29)
        mixed *= np.uint64(0xBF58476D1CE4E5B9)  # so far the lower bits of a key would hardly matter (SplitMix64's mixing)
        return int(rows[int(mixed.argmax())])

    def queue_seconds(self, row: int) -> float:
        """How long until all that waits at a replica now has got its turn: as it has found itself, or else by rates."""
        if measured := self.books[row].load.queue_seconds:
            return measured
        waiting = self.books[row].occupancy()[1]
        return max(self._queued[row] * self._per_token[row], waiting * EXPECTED_OUTPUT * self._per_decode[row])
