"""What the sketch says of hot prefixes, against counting everything."""

from __future__ import annotations

import math
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raysgl.routing.hot_prefixes import FORGET_S, HALF_LIFE_S, SHOWN, HotPrefixes, PrefixSketch
from raysgl.routing.messages import PrefixesHot

# A prompt is a path in a tree of three branches; its page hashes stand for the paths to them.
paths = st.lists(st.integers(0, 2), min_size=1, max_size=5)
requests = st.lists(st.tuples(paths, st.integers(0, 5), st.floats(0, 20 * HALF_LIFE_S)), max_size=120)


def hashes(path) -> list[int]:
    """Different for different paths."""
    chain, value = [], 1
    for step in path:
        value = value * 3 + step + 1
        chain.append(value * 16 + len(chain))
    return chain


@given(requests, st.integers(1, 12))
def test_counts_are_bounded_by_the_exact_ones(history, watched):
    history = sorted(((at, path, min(pages, len(path))) for path, pages, at in history), key=lambda request: request[0])
    sketch = PrefixSketch(watched)
    now = 20 * HALF_LIFE_S
    deepest: Counter[int] = Counter()
    covered: Counter[int] = Counter()
    for at, path, pages in history:
        chain = hashes(path)
        sketch.reused(chain, pages, 16, at)
        weight = 2.0 ** -((now - at) / HALF_LIFE_S)
        if pages:
            deepest[chain[pages - 1]] += weight
        for page in chain[:pages]:
            covered[page] += weight
    counts = sketch.counts(now)
    assert len(counts) <= watched
    assert len(sketch._lengths) <= watched and sum(sketch._lengths.values()) == len(sketch._heap) == len(counts)
    slack = 1e-9 * max(1.0, sum(covered.values()))
    for page, (count, error) in counts.items():
        assert count - error <= covered[page] + slack, "what is certain is true"
        assert count >= deepest[page] - slack, "nothing that ended here is forgotten"
    least = sum(count for count, _ in counts.values()) / watched
    for page, count in deepest.items():
        assert page in counts or count <= least + slack, "what is heavy is watched"


@given(requests)
def test_with_room_for_all_nothing_is_uncertain(history):
    sketch = PrefixSketch(1000)
    ends: Counter[int] = Counter()
    for path, pages, _ in history:
        if pages := min(pages, len(path)):
            sketch.reused(hashes(path), pages, 16, 5.0)
            ends[hashes(path)[pages - 1]] += 1
    counts = sketch.counts(5.0)
    assert set(counts) == set(ends) and all(error == 0 for _, error in counts.values())
    assert all(counts[page][0] >= hits - 1e-9 for page, hits in ends.items())


def test_a_system_prompt_is_found_among_conversations():
    """Every conversation shares it, and each goes on for itself; far more end somewhere new than are watched."""
    sketch = PrefixSketch()
    system = list(range(1, 33))
    for conversation in range(2000):
        own = [1000 * (conversation + 1) + i for i in range(4)]
        sketch.reused(system + own, 32, 16, conversation / 10, b"abcd" * 1000)
        sketch.reused(system + own, 34, 16, conversation / 10)
    first, *_ = sketch.hottest(200.0)
    assert (first.hash, first.tokens, first.beginning) == (32, 512, b"abcd" * 48)
    # Twenty hits a second, for 200 s of a half-life of 60.
    assert first.hits_per_second == pytest.approx(20 * (1 - 2 ** (-200 / HALF_LIFE_S)), rel=0.01)
    assert len(sketch.hottest(200.0)) <= SHOWN


def test_what_is_not_asked_for_any_more_goes():
    sketch = PrefixSketch()
    for _ in range(8):
        sketch.reused([7], 1, 16, 0.0)
    assert len(sketch.hottest(2.9 * HALF_LIFE_S)) == 1
    assert sketch.hottest(3.1 * HALF_LIFE_S) == []
    assert sketch.hottest(1e9) == [], "after a long time too"
    sketch.reused([8], 1, 16, 1e9)
    (found,) = sketch.hottest(1e9)
    assert found.hash == 8 and math.isfinite(found.hits_per_second)


def test_a_prompt_of_which_nothing_was_found_counts_for_nothing():
    sketch = PrefixSketch()
    sketch.reused([1, 2, 3], 0, 16, 0.0)
    sketch.reused([], 0, 16, 0.0)
    assert sketch.counts(0.0) == {}


def test_ingresses_that_are_gone_are_forgotten_and_own_news_is_not_counted_twice():
    hot = HotPrefixes("me")
    hot.reused("m", [1], 1, 16, 0.0)
    hot.reused("m", [1], 1, 16, 0.0)
    (news,) = hot.take_news(0.0)
    before = hot.hottest("m", 0.0)
    hot.told(news, 0.0)
    assert hot.hottest("m", 0.0) == before
    for i in range(100):
        hot.told(PrefixesHot("m", f"other-{i}", news.prefixes), i * FORGET_S)
    assert len(hot._others) == 1
    assert hot.hottest("another", 0.0) == []
