"""Overload, on a clock that only the engine's steps move: who is accepted, how long they wait, and that no work is lost by it."""

from __future__ import annotations

import random

import pytest

from raysgl.engine.queue_limit import QueueTime
from raysgl.messages import Submit
from raysgl.sampling.params import SamplingParams
from tests.engine.simulated import Engine, expected

STEP_S, TOKEN_S = 0.01, 0.0005
LIMIT_S = 2.0


class Server:
    """An engine whose steps take `STEP_S`, and `TOKEN_S` for each token computed, times `slowness`."""

    def __init__(self, **settings):
        self.now, self.slowness = 100.0, 1.0
        self.engine = Engine(num_pages=600, page_size=4, step_tokens=32, overlap=False, clock=lambda: self.now, **settings)
        self.engine.loop._emit = self._emit
        self.came: dict[int, float] = {}
        self.first: dict[int, float] = {}
        self.ended: dict[int, float] = {}
        self.refused: dict[int, float] = {}

    def _emit(self, outputs):
        self.engine._emit(outputs)
        for output in outputs["i"]:
            if output.finish is not None and output.finish.status == 429:
                assert not output.token_ids and output.uid not in self.first
                self.refused[output.uid] = output.finish.retry_after
                continue
            if output.token_ids:
                self.first.setdefault(output.uid, self.now)
            if output.finish is not None:
                self.ended[output.uid] = self.now

    def offer(self, rate, seconds, source, prompt=(4, 40), priority=0):
        """Poisson arrivals, each a prompt of its own."""
        due, until = self.now, self.now + seconds
        while self.now < until:
            while due <= self.now:
                uid = len(self.came)
                self.came[uid] = self.now
                tokens = [source.randrange(50) for _ in range(source.randrange(*prompt))]
                self.engine.submit(uid, tokens, max_new=source.randrange(2, 20), priority=priority)
                due += source.expovariate(rate)
            self.step()

    def step(self):
        before = self.engine.runner.computed_tokens
        self.engine.loop.run_once()
        self.now += self.slowness * (STEP_S + TOKEN_S * (self.engine.runner.computed_tokens - before))

    def waits(self):
        return [self.first[uid] - self.came[uid] for uid in self.first]


def finished_per_second(rate, seconds=25.0, **settings) -> tuple[Server, float]:
    server = Server(**settings)
    server.offer(rate, seconds, random.Random(1))
    return server, len(server.ended) / seconds


CAPACITY = 30.0
"""About what the server above finishes in a second, with eight places."""


def test_ten_times_the_load_makes_nobody_wait_longer_and_loses_no_work():
    _, most = finished_per_second(2 * CAPACITY, max_queued=50)
    quiet, _ = finished_per_second(CAPACITY / 3, max_queue_seconds=LIMIT_S)
    flooded, finished = finished_per_second(10 * CAPACITY, max_queue_seconds=LIMIT_S)
    assert not quiet.refused
    assert finished >= 0.97 * most
    assert 0.5 * CAPACITY < most < 2 * CAPACITY, "the test's idea of the capacity is wrong"
    # Until enough is measured (half a second) all are let in; those at the end of that queue are refused after all.
    assert max(flooded.waits()) <= 2 * LIMIT_S
    late = [retry for uid, retry in flooded.refused.items() if flooded.came[uid] > 110]
    assert late and 0.4 * LIMIT_S < min(late) and max(late) < LIMIT_S
    uid = max(flooded.ended)
    assert flooded.engine.tokens(uid) == expected(prompt_of(flooded, uid), len(flooded.engine.tokens(uid)))


def prompt_of(server, uid):
    """The prompt that `offer` made for it: its random numbers once more."""
    source = random.Random(1)
    for _ in range(uid + 1):
        tokens = [source.randrange(50) for _ in range(source.randrange(4, 40))]
        source.randrange(2, 20), source.expovariate(1)
    return tokens


@pytest.mark.parametrize("what", ["prompts", "places", "memory"])
def test_whatever_the_queue_waits_for(what):
    settings = {"prompts": {"max_running": 64}, "places": {"max_running": 2}, "memory": {"max_running": 64}}[what]
    server = Server(max_queue_seconds=LIMIT_S, **settings)
    if what == "memory":
        server.engine.scheduler.pool.allocate(560)
    lengths = (60, 120) if what == "prompts" else (4, 40)
    server.offer(10 * CAPACITY, 15, random.Random(2), lengths)
    assert server.refused and max(server.waits()) <= 2 * LIMIT_S


def test_a_queue_that_becomes_slow_refuses_its_last_ones_after_all():
    server = Server(max_queue_seconds=LIMIT_S, max_running=4)
    source = random.Random(3)
    server.offer(1.5 * CAPACITY, 20, source)
    waiting = [seq.uid for seq in server.engine.scheduler.waiting.last_first()]
    refused = set(server.refused)
    assert len(waiting) > 10
    server.slowness = 20.0
    server.offer(1e-9, 60, source)
    shed = set(server.refused) - refused
    kept = set(waiting) - shed
    assert shed and kept and max(kept) < min(shed), "the last ones go first"


def test_who_has_had_tokens_is_never_refused():
    server = Server(max_queue_seconds=LIMIT_S, max_running=2, max_queued=100)
    server.offer(10 * CAPACITY, 20, random.Random(4))
    full = expected([1, 2, 3], 12)
    assert server.engine.scheduler.load().queue_seconds > 0.8 * LIMIT_S
    server.engine.submit(10**6, [1, 2, 3], max_new=12, sent=full[:4], waited_s=3.0)
    server.offer(10 * CAPACITY, 10, random.Random(5))
    assert server.engine.tokens(10**6) == full[4:]


def test_who_goes_first_is_refused_last():
    server = Server(max_queue_seconds=LIMIT_S, max_running=2, max_queued=100)
    source = random.Random(6)
    server.offer(10 * CAPACITY, 20, source)
    before = len(server.came)
    server.offer(1.0, 10, source, priority=3)
    urgent = set(range(before, len(server.came)))
    assert len(urgent) > 3 and not urgent & set(server.refused)
    assert max(server.first[uid] - server.came[uid] for uid in urgent & set(server.first)) < LIMIT_S


def test_nothing_is_said_of_a_queue_before_it_has_moved():
    time = QueueTime()
    time.planned(0.0, 8, 80, queued=True)
    assert time.wait(100, 1000) == 0.0
    time.planned(1.0, 3, 30, queued=True)
    assert time.wait(100, 1000) == 0.0
    time.planned(2.0, 2, 20, queued=True)
    assert 35 < time.wait(100, 1000) < 45
    assert time.wait(100, 2000) == pytest.approx(2 * time.wait(100, 1000))
    assert time.wait(0, 0) == 0.0
    time.planned(3.0, 0, 0, queued=False)
    time.planned(100.0, 50, 500, queued=False)
    assert 55 < time.wait(100, 1000) < 65, "what begins without waiting does not count"


def test_several_sequences_of_one_request_are_refused_together():
    server = Server(max_queue_seconds=LIMIT_S, max_running=2, max_queued=1)
    submit = Submit(5, "r", "i", b"\0" * 8, SamplingParams(max_new_tokens=4, n=4), [])
    server.engine.scheduler.add(submit)
    outputs = server.engine.scheduler.outputs.take()["i"]
    assert [(output.uid, output.finish.status) for output in outputs] == [(uid, 429) for uid in range(5, 9)]
