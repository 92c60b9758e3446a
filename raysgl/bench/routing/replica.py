"""A model of one engine: continuous batching with chunked prefill over paged memory, as `raysgl.engine.scheduler` does it.

A step computes one token for each decoding row and up to `step_tokens` in all. While nothing is prefilled, steps are not simulated one by
one: a run of decode steps lasts until the next sequence ends, pages run out, or a request arrives (it is taken in at the
next step boundary). So a request costs a handful of events, however long its answer.

Pages: pool = free + cached (in `EdgeCache`) + `own` (of running sequences, not in the cache: the tail of the prompt, and the output until the end).
"""

from __future__ import annotations

import heapq
import itertools
from collections import deque
from collections.abc import Callable

from raysgl.bench.routing.cache import EdgeCache
from raysgl.bench.routing.calibration import Calibration
from raysgl.bench.routing.prefixes import Edge
from raysgl.bench.routing.requests import Listener, Request, Sequence
from raysgl.messages import KVEvent, Load

SMOOTHING = 0.1
"""Of measured rates, as in `raysgl.engine.rates`."""


class Replica:
    """row: its number. Times in seconds of the simulated clock."""

    def __init__(
        self, row: int, calibration: Calibration, listener: Listener, on_event: Callable[[KVEvent], None] | None = None
    ):
        self.row = row
        self.calibration = calibration
        self.cache = EdgeCache(on_event)
        self.waiting: deque[Sequence] = deque()
        self.prefilling: list[Sequence] = []
        self.decoding: dict[int, Sequence] = {}  # by order of admission
        self.own = 0
        self.queued_tokens = 0
        self.context = 0
        """Tokens that the decoding rows attend to, together."""
        self.decoded = 0
        """Decode steps so far; every decoding sequence gained a token in each since it began."""
        self.ends_at = 0.0
        """When the step or run under way ends."""
        self.steps = 0
        self.retractions = 0
        self.prefill_rate = self.decode_rate = self.step_seconds = self._decode_seconds = 0.0
        self.prompt_tokens = self.cached_tokens = self.generated_tokens = 0
        self._listener = listener
        self._pages = calibration.pages
        self._phases = [0] * calibration.page_size
        self._ends: list[tuple[int, int, Sequence]] = []
        self._order = itertools.count()
        self._orders: dict[Sequence, int] = {}
        self._computing: dict[Edge, int] = {}
        self._version = 0
        self._run: tuple[float, int, float, float] | None = None  # start, steps, first step's seconds, growth per step
        self._chunks: list[tuple[Sequence, int]] | None = None
        self._step_started = 0.0
        self._output_mean = 0.0

    # ------------------------------------------------------------------ what is seen of it

    @property
    def free_pages(self) -> int:
        return self._pages - self.cache.total_pages - self.own

    @property
    def running(self) -> int:
        return len(self.prefilling) + len(self.decoding)

    def load(self) -> Load:
        """As the engine reports it."""
        return Load(
            running=self.running,
            waiting=len(self.waiting),
            queued_tokens=self.queued_tokens,
            free_pages=self.free_pages,
            cached_pages=self.cache.evictable_pages,
            total_pages=self._pages,
            prefill_rate=self.prefill_rate,
            decode_rate=self.decode_rate,
            step_seconds=self.step_seconds,
            retractions=self.retractions,
            prompt_tokens=self.prompt_tokens,
            cached_tokens=self.cached_tokens,
            generated_tokens=self.generated_tokens,
            max_running=self.calibration.max_running,
            steps=self.steps,
        )

    # ------------------------------------------------------------------ events

    def submit(self, request: Request, now: float) -> None:
        """A request arrives."""
        sequence = Sequence(request, request.num_tokens, request.num_tokens)
        self.queued_tokens += sequence.queued
        self.waiting.append(sequence)
        if self._run is not None:
            self._cut_run(now)
        elif self._chunks is None:
            self._begin(now)

    def wake(self, now: float, version: int) -> None:
        """The step or run under way is over, if it is still the one that asked for this."""
        if version == self._version:
            if self._run is not None:
                self._end_run(now)
            else:
                self._end_step(now)
            self._begin(now)

    def _schedule(self, at: float) -> None:
        self._version += 1
        self.ends_at = at
        self._listener.wake(self, at, self._version)

    def _begin(self, now: float) -> None:
        """Plan the next step or run."""
        size = len(self._phases)
        while self._phases[-self.decoded % size] > self.free_pages + self.cache.evictable_pages:
            self._retract()
        self._step_started = now
        pages = self._phases[-self.decoded % size]
        self._make_room(pages)
        self.own += pages
        chunks = self._plan_chunks()
        if not chunks:
            self.own -= pages  # a run takes its pages when it ends
        cal = self.calibration
        if chunks:
            self._chunks = chunks
            tokens = sum(count for _, count in chunks) + len(self.decoding)
            self._schedule(now + cal.matrix_seconds(tokens) + self.context * cal.kv_seconds)
        elif self.decoding:
            rows = len(self.decoding)
            steps = self._run_steps()
            first = cal.matrix_seconds(rows) + self.context * cal.kv_seconds
            growth = rows * cal.kv_seconds
            self._run = (now, steps, first, growth)
            self._schedule(now + _run_seconds(steps, first, growth))

    # ------------------------------------------------------------------ runs of decode steps

    def _run_steps(self) -> int:
        """How many steps until a sequence ends or pages are short; at least 1."""
        ends, decoding = self._ends, self._orders
        while decoding.get(ends[0][2]) != ends[0][1]:
            heapq.heappop(ends)
        steps = ends[0][0] - self.decoded
        room = self.free_pages + self.cache.evictable_pages
        if steps * len(self.decoding) // len(self._phases) + len(self.decoding) > room:
            size = len(self._phases)
            for step in range(steps):
                room -= self._phases[-(self.decoded + step) % size]
                if room < 0:
                    return max(1, step)
        return steps

    def _cut_run(self, now: float) -> None:
        """Let the run end at the next step boundary."""
        assert self._run is not None
        start, steps, first, growth = self._run
        done = min(steps, max(1, int((now - start) / first)))
        while done > 1 and start + _run_seconds(done - 1, first, growth) >= now:
            done -= 1
        while done < steps and start + _run_seconds(done, first, growth) < now:
            done += 1
        if done < steps:
            self._run = (start, done, first, growth)
            self._schedule(start + _run_seconds(done, first, growth))

    def _end_run(self, now: float) -> None:
        assert self._run is not None
        start, steps, _, _ = self._run
        self._run = None
        rows = len(self.decoding)
        pages, size = 0, len(self._phases)
        whole, rest = divmod(steps, size)
        if whole:
            pages += whole * rows
        for step in range(rest):
            pages += self._phases[-(self.decoded + step) % size]
        self._make_room(pages)
        self.own += pages
        seconds = (now - start) / steps
        keep = (1 - SMOOTHING) ** steps
        self.step_seconds = _average(self.step_seconds, seconds, keep)
        self._decode_seconds = _average(self._decode_seconds, seconds, keep)
        self.decode_rate = _average(self.decode_rate, rows / seconds, keep)
        self._decode(steps, now)

    def _decode(self, steps: int, now: float) -> None:
        """All decoding sequences have gained so many tokens, for which there are pages."""
        self.steps += steps
        self.decoded += steps
        self.context += steps * len(self.decoding)
        self.generated_tokens += steps * len(self.decoding)
        ends = self._ends
        while ends and ends[0][0] <= self.decoded:
            _, order, sequence = heapq.heappop(ends)
            if self._orders.get(sequence) == order:
                self._finish(sequence, now)

    # ------------------------------------------------------------------ steps with prefill

    def _plan_chunks(self) -> list[tuple[Sequence, int]]:
        cal = self.calibration
        room = max(cal.step_tokens - len(self.decoding), cal.page_size)
        chunks: list[tuple[Sequence, int]] = []
        for sequence in self.prefilling:
            count = min(room, sequence.goal - sequence.computed)
            if count <= 0:
                return chunks
            chunks.append((sequence, count))
            room -= count
        if not self.waiting or room <= 0:
            return chunks
        skipped: list[Sequence] = []
        while self.waiting and room > 0 and self.running < cal.max_running and len(skipped) < 256:
            sequence = self.waiting.popleft()
            request = sequence.request
            limit = request.match_pages if not sequence.generated else (sequence.goal - 1) // cal.page_size
            hit = self.cache.peek(request.path, limit)
            if self._computing and self._awaits(sequence, hit):
                skipped.append(sequence)
                continue
            if not self._admit(sequence, hit, limit):
                self.waiting.appendleft(sequence)
                break
            count = min(room, sequence.goal - sequence.computed)
            chunks.append((sequence, count))
            room -= count
        self.waiting.extendleft(reversed(skipped))
        return chunks

    def _awaits(self, sequence: Sequence, hit: int) -> bool:
        """Whether a running prefill computes the next pages that it needs."""
        for edge in sequence.request.path:
            if edge.depth + edge.size > hit:
                return edge.depth < sequence.request.match_pages and edge in self._computing
        return False

    def _admit(self, sequence: Sequence, hit: int, limit: int) -> bool:
        cal = self.calibration
        request = sequence.request
        need = -(-sequence.goal // cal.page_size) - hit
        self.cache.match(request.path, limit)
        self.cache.lock(request.path, hit)
        growth = self._output_mean / cal.page_size
        # On average running sequences are half way through.
        reserve = growth * (1 + self.running / 2) if self.running else 0.0
        if self.free_pages + self.cache.evictable_pages - need < reserve:
            self.cache.unlock(request.path, hit)
            return False
        self._make_room(need)
        sequence.own = need
        self.own += need
        sequence.shared = hit
        sequence.computed = hit * cal.page_size
        self._requeue(sequence, sequence.goal - sequence.computed)
        if sequence.hit_tokens < 0:
            sequence.hit_tokens = sequence.computed
            self.prompt_tokens += request.num_tokens
            self.cached_tokens += sequence.computed
        for edge in request.path:
            if edge.depth + edge.size > hit and edge.depth + edge.size <= limit:
                sequence.computing.append(edge)
                self._computing[edge] = self._computing.get(edge, 0) + 1
        self.prefilling.append(sequence)
        return True

    def _requeue(self, sequence: Sequence, tokens: int) -> None:
        self.queued_tokens += tokens - sequence.queued
        sequence.queued = tokens

    def _end_step(self, now: float) -> None:
        chunks, self._chunks = self._chunks, None
        assert chunks is not None
        self._measure(now, sum(count for _, count in chunks))
        if self.decoding:
            self._decode(1, now)
        else:
            self.steps += 1
        for sequence, count in chunks:
            sequence.computed += count
            self._requeue(sequence, sequence.goal - sequence.computed)
            self._share(sequence, sequence.computed)
            if sequence.computed == sequence.goal:
                self.prefilling.remove(sequence)
                self._start_decoding(sequence, now)

    def _measure(self, now: float, tokens: int) -> None:
        seconds = now - self._step_started
        self.step_seconds = _average(self.step_seconds, seconds, 1 - SMOOTHING)
        own = seconds - (self._decode_seconds if self.decoding else 0.0)
        if tokens >= 32 and own > 0.1 * seconds:
            self.prefill_rate = _average(self.prefill_rate, tokens / own, 1 - SMOOTHING)

    def _share(self, sequence: Sequence, tokens: int) -> None:
        """Its full pages go to the cache; where those are there already, its own are free again."""
        path = sequence.request.path
        pages = min(tokens // self.calibration.page_size, path[-1].depth + path[-1].size if path else 0)
        if pages > sequence.shared:
            self.cache.insert(path, pages)
            self.cache.lock(path, pages, sequence.shared)
            self.own -= pages - sequence.shared
            sequence.own -= pages - sequence.shared
            sequence.shared = pages
        if sequence.computing:
            done = [edge for edge in sequence.computing if edge.depth + edge.size <= pages]
            if done:
                self._forget(done)
                sequence.computing = sequence.computing[len(done) :]

    def _forget(self, edges: list[Edge]) -> None:
        for edge in edges:
            count = self._computing[edge] - 1
            if count:
                self._computing[edge] = count
            else:
                del self._computing[edge]

    def _start_decoding(self, sequence: Sequence, now: float) -> None:
        sequence.generated += 1
        self.generated_tokens += 1
        if sequence.first_token < 0:
            sequence.first_token = now
            self._listener.first_token(self, sequence, now)
        order = next(self._order)
        self._orders[sequence] = order
        self.decoding[order] = sequence
        self.context += sequence.goal
        size = len(self._phases)
        sequence.phase = (sequence.goal - self.decoded) % size
        self._phases[sequence.phase] += 1
        sequence.ends_at = self.decoded + sequence.request.output_len - sequence.generated
        if sequence.ends_at <= self.decoded:
            self._finish(sequence, now)
        else:
            heapq.heappush(self._ends, (sequence.ends_at, order, sequence))

    # ------------------------------------------------------------------ leaving

    def _leave(self, sequence: Sequence) -> None:
        """Stop decoding: what was computed stays cached."""
        order = self._orders.pop(sequence)
        del self.decoding[order]
        left = sequence.ends_at - self.decoded
        sequence.generated = sequence.request.output_len - left
        self._phases[sequence.phase] -= 1
        tokens = sequence.request.num_tokens + sequence.generated - 1
        self.context -= tokens
        sequence.own = -(-tokens // self.calibration.page_size) - sequence.shared
        self._share(sequence, tokens)
        self.own -= sequence.own
        sequence.own = 0
        self.cache.unlock(sequence.request.path, sequence.shared)
        sequence.shared = 0

    def _finish(self, sequence: Sequence, now: float) -> None:
        self._leave(sequence)
        mean = float(sequence.request.output_len)
        self._output_mean = mean if not self._output_mean else 0.98 * self._output_mean + 0.02 * mean
        self._listener.finished(self, sequence, now)

    def _retract(self) -> None:
        """The youngest goes back to the queue; its tokens are kept."""
        self.retractions += 1
        if self.prefilling:
            sequence = self.prefilling.pop()
            self._forget(sequence.computing)
            sequence.computing = []
            self.own -= sequence.own
            self.cache.unlock(sequence.request.path, sequence.shared)
            sequence.own = sequence.shared = sequence.computed = 0
        else:
            sequence = self.decoding[next(reversed(self.decoding))]
            self._leave(sequence)
            sequence.goal = sequence.request.num_tokens + sequence.generated
        self._requeue(sequence, sequence.goal)
        self.waiting.appendleft(sequence)

    def _make_room(self, pages: int) -> None:
        missing = pages - self.free_pages
        if missing > 0:
            self.cache.evict(missing)

    def check(self) -> None:
        """Assert that every page is accounted for; for tests."""
        assert 0 <= self.own and self.own + self.cache.total_pages <= self._pages
        assert self.queued_tokens == sum(s.queued for s in (*self.waiting, *self.prefilling))
        if not self.running:
            assert self.own == 0 and self.cache.locked_pages == 0 and self.context == 0 and not self._computing
            assert not any(self._phases)


def _run_seconds(steps: int, first: float, growth: float) -> float:
    return steps * first + growth * steps * (steps - 1) / 2


def _average(old: float, new: float, keep: float) -> float:
    return new if old == 0.0 else new + keep * (old - new)
