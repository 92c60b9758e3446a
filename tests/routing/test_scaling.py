"""When replicas are added and taken away."""

from __future__ import annotations

from dataclasses import replace

import pytest

from raysgl.config import AutoscalingConfig
from raysgl.routing.scaling import ReplicaLoad, Scaler, figures

IDLE = ReplicaLoad(queued_tokens=0, queue_seconds=0.0, used_pages=0, hot_pages=0, total_pages=100, ttft=0.1, busy=False)
BUSY = replace(IDLE, used_pages=30, busy=True)


def scaler(**settings) -> Scaler:
    return Scaler(AutoscalingConfig(**{"max_replicas": 8, "upscale_delay_s": 5, "downscale_delay_s": 60, **settings}))


def after(s: Scaler, seconds: float, loads, current: int, waiting=False) -> int:
    """The decision when the loads have been the same for so long."""
    s.decide(loads, current, waiting, 100.0)
    return s.decide(loads, current, waiting, 100.0 + seconds)


@pytest.mark.parametrize(
    ("load", "settings"),
    [
        (replace(BUSY, queue_seconds=2.5), {"target_queue_s": 1.0}),
        (replace(BUSY, used_pages=95), {"target_kv_use": 0.4}),
        (replace(BUSY, ttft=0.9), {"target_ttft_s": 0.4}),
    ],
)
def test_each_signal_asks_for_more(load, settings):
    assert after(scaler(**settings), 5, [load, load], 2) == 4  # it asks for 5 or 6; one decision doubles at most
    assert after(scaler(**settings), 4.9, [load, load], 2) == 2, "it has not asked for long enough"


def test_a_moment_of_rest_starts_the_delay_anew():
    s = scaler()
    full = [replace(BUSY, queue_seconds=3)]
    assert s.decide(full, 1, False, 0.0) == s.decide([BUSY], 1, False, 3.0) == s.decide(full, 1, False, 4.0) == 1
    assert s.decide(full, 1, False, 8.0) == 1
    assert s.decide(full, 1, False, 9.0) == 2


def test_never_more_than_allowed():
    assert after(scaler(max_replicas=3), 5, [replace(BUSY, queue_seconds=50)] * 3, 3) == 3


def test_replicas_that_start_are_waited_for():
    assert after(scaler(), 10, [replace(BUSY, queue_seconds=50)], 2) == 2


def test_down_one_at_a_time_and_late():
    assert after(scaler(), 59, [BUSY] * 4, 4) == 4
    assert after(scaler(), 60, [BUSY] * 4, 4) == 3


def test_not_down_where_hot_prefixes_would_be_lost():
    hot = replace(BUSY, used_pages=5, hot_pages=60)
    assert after(scaler(), 999, [hot, hot], 2) == 2
    assert after(scaler(), 999, [hot, replace(hot, hot_pages=10)], 2) == 1


def test_a_decision_says_which_figures_made_it():
    s = scaler()
    waiting = replace(BUSY, queued_tokens=40_000, queue_seconds=2.5)
    assert after(s, 5, [waiting, waiting], 2) == 4
    assert "80,000 uncached prompt tokens" in s.why and "5.0 s" in s.why and not s.held
    now = figures([waiting, replace(waiting, ttft=0.3, hot_pages=20), IDLE])
    assert (now.queued_tokens, now.queue_seconds, now.reports) == (80_000, 5.0, 3)
    assert (now.kv_use, now.hot_use, now.ttft) == pytest.approx((0.2, 20 / 300, 0.2))
    for settings, load, words in [
        ({"target_kv_use": 0.4}, replace(BUSY, used_pages=95), "95% of KV (target 40%)"),
        ({"target_ttft_s": 0.4}, replace(BUSY, ttft=0.9), "0.90 s (target 0.4 s)"),
    ]:
        s = scaler(**settings)
        after(s, 5, [load], 1)
        assert words in s.why


def test_it_says_that_hot_prefixes_keep_a_replica():
    s = scaler()
    hot = replace(BUSY, used_pages=5, hot_pages=60)
    assert after(s, 60, [hot, hot], 2) == 2
    assert s.held and "130 pages" in s.why and "90" in s.why
    s.decide([replace(hot, queue_seconds=1.5)] * 2, 2, False, 161.0)
    assert not s.held, "fewer would not do any more"


def test_to_zero_and_back():
    s = scaler(min_replicas=0)
    assert after(s, 60, [IDLE], 1) == 0
    assert s.decide([], 0, False, 300.0) == 0
    assert s.decide([], 0, True, 301.0) == 1
    assert after(scaler(), 9999, [IDLE], 1) == 1, "min_replicas is 1"
    assert after(scaler(min_replicas=0), 9999, [replace(IDLE, hot_pages=1)], 1) == 1, "its cache is still asked for"
