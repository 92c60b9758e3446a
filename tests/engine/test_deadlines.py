"""Waiting sequences whose answer would come too late, on a clock that the test moves."""

from __future__ import annotations

import pytest

from raysgl.engine.deadlines import HOPE
from tests.engine.simulated import Engine, expected


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def engine(clock):
    """One place, taken by a sequence that never ends."""
    engine = Engine(max_running=1, num_pages=4000, step_tokens=64, overlap=False, clock=clock)
    engine.submit(0, list(range(40)), max_new=3000)
    rounds(engine, 3)
    return engine


def rounds(engine, count):
    for _ in range(count):
        engine.loop.run_once()
        engine.scheduler.check()


def test_one_that_waits_is_dropped_at_its_deadline_and_not_before(engine, clock):
    engine.submit(1, [1, 2, 3], timeout_s=5.0)
    engine.submit(2, [1, 2, 3])
    rounds(engine, 2)
    engine.scheduler.deadlines.prefill_rate = 0.0
    clock.now += 4.9
    rounds(engine, 1)
    assert 1 not in engine.outputs
    clock.now += 0.2
    rounds(engine, 2)
    assert (engine.finish(1).reason, engine.finish(1).status) == ("abort", 504)
    assert 2 not in engine.outputs and len(engine.scheduler.waiting) == 1


def test_one_that_cannot_make_it_any_more_is_dropped_early(engine, clock, monkeypatch):
    monkeypatch.setattr(
        type(engine.loop._rates), "prefill", property(lambda self: 10.0, lambda self, value: None), raising=False
    )
    cached, new = list(range(40)), [7, *range(40)]
    rounds(engine, 2)
    engine.submit(1, cached, timeout_s=1.0)
    engine.submit(2, new, timeout_s=1.0)
    engine.submit(3, new, timeout_s=HOPE * 41 / 10 + 1.0)
    rounds(engine, 2)
    assert list(engine.outputs) == [0, 2], "4 s of computing, but nearly all of 1 is cached"
    clock.now += 1.1
    rounds(engine, 2)
    assert [uid for uid in (1, 2, 3) if uid in engine.outputs] == [1, 2, 3]
    assert {engine.finish(uid).status for uid in (1, 2, 3)} == {504}


def test_what_runs_and_what_has_had_tokens_is_left_to_the_ingress(clock):
    engine = Engine(max_running=1, overlap=False, clock=clock)
    full = expected([1, 2, 3], 10)
    engine.submit(1, [5, 6], max_new=20, timeout_s=1.0)
    engine.submit(2, [1, 2, 3], max_new=10, sent=full[:4], timeout_s=1.0)
    rounds(engine, 2)
    clock.now += 10
    engine.run()
    assert engine.tokens(1) == expected([5, 6], 20) and engine.tokens(2) == full[4:]


def test_a_queue_that_is_longer_than_the_deadline_refuses(engine, clock, monkeypatch):
    monkeypatch.setattr(engine.scheduler.limit.time, "wait", lambda sequences, tokens: 3.0)
    engine.submit(1, [1], timeout_s=2.0)
    engine.submit(2, [1], timeout_s=4.0)
    rounds(engine, 1)
    assert engine.finish(1).status == 429 and engine.finish(1).retry_after == 1.5
    assert 2 not in engine.outputs
