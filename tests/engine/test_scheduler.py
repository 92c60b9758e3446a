"""The scheduler with a simulated model: what comes out is exact whatever memory, chunking and timing do."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raysgl.cache.hashing import page_hashes
from raysgl.engine.waiting import PRIORITY_S
from raysgl.messages import Abort, AbortRequest, FlushCache
from tests.engine.simulated import Engine, expected


@pytest.mark.parametrize("overlap", [False, True])
def test_one_request(overlap):
    engine = Engine(overlap=overlap)
    engine.submit(1, list(range(10)), max_new=20)
    engine.run()
    assert engine.tokens(1) == expected(list(range(10)), 20)
    assert engine.finish(1).reason == "length"
    assert engine.scheduler.tree.total_pages == 29 // 4


@pytest.mark.parametrize("overlap", [False, True])
def test_stop_token_ends_a_sequence_and_is_reported(overlap):
    full = expected([1, 2, 3], 30)
    stop = full[10]
    first = full.index(stop)
    engine = Engine(overlap=overlap, eos=(stop,))
    engine.submit(1, [1, 2, 3], max_new=30)
    engine.submit(2, [1, 2, 3], max_new=30, ignore_eos=True)
    engine.run()
    assert engine.tokens(1) == full[: first + 1]
    assert (engine.finish(1).reason, engine.finish(1).matched) == ("stop", stop)
    assert engine.tokens(2) == full


def test_decode_goes_on_while_a_long_prompt_is_prefilled_in_chunks():
    engine = Engine(step_tokens=8, num_pages=100)
    engine.submit(1, [1, 2, 3], max_new=30)
    engine.loop.run_once(), engine.loop.run_once()
    engine.submit(2, list(range(60)), max_new=2)
    mixed = []
    launch = engine.runner.launch
    engine.runner.launch = lambda plan: (mixed.append((plan.num_decode, len(plan.token_ids_T) // 4)), launch(plan))[1]
    engine.run()
    assert engine.tokens(2) == expected(list(range(60)), 2)
    assert sum(1 for decodes, prefill in mixed if decodes and prefill) >= 6
    assert all(decodes + prefill <= 8 for decodes, prefill in mixed)


def test_a_prefix_is_computed_once():
    engine = Engine(num_pages=200, step_tokens=64)
    prefix = list(range(40))
    engine.submit(1, prefix + [1])
    engine.run()
    engine.submit(2, prefix + [2, 3])
    engine.run()
    assert engine.outputs[1][0].cached_tokens == 0
    assert engine.outputs[2][0].cached_tokens == 40
    assert engine.tokens(2) == expected(prefix + [2, 3], 8)


def test_requests_that_share_an_uncached_prefix_wait_for_the_first():
    engine = Engine(num_pages=200, step_tokens=16)
    prefix = list(range(48))
    for uid in range(6):
        engine.submit(uid, prefix + [uid], max_new=1)
    engine.run()
    assert [engine.outputs[uid][0].cached_tokens for uid in range(6)] == [0] + [48] * 5
    assert engine.runner.computed_tokens == 49 + 5
    for uid in range(6):
        assert engine.tokens(uid) == expected(prefix + [uid], 1)


def test_samples_of_one_prompt_share_its_pages():
    engine = Engine(num_pages=200, step_tokens=64)
    engine.submit(10, list(range(33)), n=3, seed=7)
    engine.run()
    assert [engine.outputs[uid][0].cached_tokens for uid in (10, 11, 12)] == [0, 32, 32]
    for i in range(3):
        assert engine.tokens(10 + i) == expected(list(range(33)), 8, seed=7 + i)


def test_extra_key_separates_caches():
    engine = Engine(num_pages=200)
    engine.submit(1, list(range(20)), extra_key="a")
    engine.run()
    engine.submit(2, list(range(20)), extra_key="b")
    engine.run()
    assert engine.outputs[2][0].cached_tokens == 0


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("policy", ["fcfs", "lpm"])
def test_too_small_a_pool_changes_nothing_but_time(overlap, policy):
    engine = Engine(num_pages=60, page_size=4, max_running=32, step_tokens=32, overlap=overlap, policy=policy)
    prompts = {uid: [uid % 5, *range(uid % 7, 12)] for uid in range(64)}
    for _ in range(20):
        engine.scheduler.estimator.record(2)  # it has learned that outputs are short, and will be wrong
    for uid, prompt in prompts.items():
        engine.submit(uid, prompt, max_new=30)
    engine.run()
    assert engine.scheduler.stats.retractions > 0
    for uid, prompt in prompts.items():
        assert engine.tokens(uid) == expected(prompt, 30)
    assert engine.scheduler.pool.available + engine.scheduler.tree.evictable_pages == 60


def test_moved_request_continues():
    full = expected([5, 6, 7], 12)
    engine = Engine()
    engine.submit(1, [5, 6, 7], max_new=12, sent=full[:5])
    engine.run()
    assert engine.tokens(1) == full[5:]
    assert engine.finish(1).reason == "length"


@pytest.mark.parametrize("before", [1, 2, 8, 64])
def test_a_request_hashed_for_another_page_size_is_hashed_again(before):
    """An update may change page_size while requests are on their way, or move."""
    prompt = list(range(33))
    engine, other = Engine(num_pages=200), Engine(num_pages=200)
    engine.submit(1, prompt)
    (submit,) = engine.inbox
    submit.page_hashes = page_hashes(prompt, before)
    other.submit(1, prompt)
    engine.run(), other.run()
    assert engine.tokens(1) == expected(prompt, 8)
    assert engine.events == other.events


def test_refusals_name_the_limits():
    engine = Engine(num_pages=4, page_size=4, max_running=2, max_queued=1)
    engine.submit(1, list(range(40)))
    engine.submit(2, [])
    for uid in (3, 4, 5, 6):
        engine.submit(uid, [1], max_new=2)
    engine.run()
    assert engine.finish(1).status == 400 and "40" in engine.finish(1).message and "16" in engine.finish(1).message
    assert engine.finish(2).status == 400
    assert [engine.finish(uid).reason for uid in (3, 4, 5)] == ["length"] * 3
    assert (engine.finish(6).reason, engine.finish(6).status) == ("abort", 429)


def test_prompt_logprobs_cover_the_prompt_and_ignore_the_cache():
    engine = Engine(step_tokens=8, num_pages=100)
    prompt = list(range(30))
    engine.submit(1, prompt, max_new=4)
    engine.run()
    engine.submit(2, prompt, max_new=4, prompt_logprobs=0)
    engine.submit(3, prompt, max_new=0, prompt_logprobs=0)
    engine.run()
    for uid in (2, 3):
        entries = engine.outputs[uid][0].prompt_logprobs
        assert [entry.token_id for entry in entries] == prompt
        assert entries[0].logprob is None and entries[1].logprob == -1.0
        assert engine.finish(uid).reason == "length"
    assert engine.tokens(2) == expected(prompt, 4) and engine.tokens(3) == []


@pytest.mark.parametrize("start", [0, 3, 8, 17, 28, 29, 100])
@pytest.mark.parametrize("step_tokens", [0, 8])
def test_prompt_logprobs_from_a_position_on_use_the_cache_before_it(start, step_tokens):
    engine = Engine(step_tokens=step_tokens, num_pages=100)
    prompt = list(range(30))
    engine.submit(1, prompt, max_new=4)
    engine.run()
    engine.submit(2, prompt, max_new=4, prompt_logprobs=0, prompt_logprobs_start=start)
    engine.run()
    first = engine.outputs[2][0]
    begin = min(start, 29)
    assert [entry.token_id for entry in first.prompt_logprobs] == prompt[begin:]
    assert [entry.logprob for entry in first.prompt_logprobs] == [None] + [-1.0] * (29 - begin)
    assert first.cached_tokens == begin // 4 * 4
    assert engine.tokens(2) == expected(prompt, 4)


@pytest.mark.parametrize("request_id", ["r1", None])
def test_a_request_is_aborted_for_another_ingress(request_id):
    """Exactly the one asked for: r1 is not the beginning of r10."""
    engine = Engine()
    for uid in (1, 10):
        engine.submit(uid, [uid] * 9, max_new=50)
    for _ in range(3):
        engine.loop.run_once()
    engine.inbox.append(AbortRequest("i", request_id))
    engine.loop.run_once()
    assert not any(output.finish for uid in (1, 10) for output in engine.outputs[uid]), "its own are not its business"
    engine.inbox.append(AbortRequest("another", request_id))
    engine.run()
    assert engine.finish(1).reason == "abort" and len(engine.tokens(1)) < 50
    assert engine.finish(10).reason == ("length" if request_id else "abort")


def test_flush_is_refused_while_busy():
    engine = Engine()
    answers = []
    engine.loop._answer = lambda ingress, message: answers.append(message.ok)
    engine.submit(1, list(range(20)))
    engine.inbox.append(FlushCache("i", 1))
    engine.run()
    engine.inbox.append(FlushCache("i", 2))
    engine.run()
    assert answers == [False, True]
    assert engine.scheduler.pool.available == 64


def order_of(engine) -> list[int]:
    """Runs it; the order in which its sequences finish."""
    order = []
    emit = engine._emit
    engine.loop._emit = lambda outputs: (order.extend(o.uid for o in outputs["i"] if o.finish), emit(outputs))
    engine.run()
    return order


@pytest.mark.parametrize("policy", ["fcfs", "lpm"])
def test_priority_goes_first(policy):
    engine = Engine(max_running=1, overlap=False, policy=policy)
    for uid, priority in enumerate([0, 0, 5, -3, 5]):
        engine.submit(uid, [uid], max_new=2, priority=priority)
    assert order_of(engine) == [2, 4, 0, 1, 3]


@pytest.mark.parametrize("scarce", ["places", "memory"])
@pytest.mark.parametrize("overlap", [False, True])
def test_a_request_of_much_higher_priority_interrupts_and_no_token_is_lost(scarce, overlap):
    sizes = {"max_running": 2} if scarce == "places" else {"num_pages": 40}
    engine = Engine(overlap=overlap, **sizes)
    prompts = {uid: [uid, *range(20)] for uid in range(4)}
    for uid, priority in ((0, 1), (1, 0)):
        engine.submit(uid, prompts[uid], max_new=40, priority=priority)
    for _ in range(12):
        engine.loop.run_once()
    assert len(engine.scheduler.running) == 2 and engine.tokens(1)
    engine.submit(2, prompts[2], max_new=40, priority=9)
    engine.loop.run_once()
    engine.loop.run_once()
    assert engine.scheduler.stats.retractions == 0, "not much higher"
    engine.submit(3, prompts[3], max_new=40, priority=10)
    assert order_of(engine)[-1] == 1, "the one of the lowest priority made room"
    assert engine.scheduler.stats.retractions >= 1
    for uid, prompt in prompts.items():
        assert engine.tokens(uid) == expected(prompt, 40)


def test_a_point_of_priority_is_worth_a_while_of_waiting():
    """So nobody starves: who came long enough before is not overtaken any more."""
    now = [100.0]
    engine = Engine(max_running=1, overlap=False, clock=lambda: now[0])
    for uid in range(6):
        engine.submit(uid, [uid], max_new=2, priority=2 if uid % 2 else 0)
        engine.inbox, arrived = [], engine.inbox
        for submit in arrived:
            engine.scheduler.add(submit)
        now[0] += PRIORITY_S * 0.9
    assert order_of(engine) == [1, 0, 3, 2, 5, 4]


def test_a_request_that_moved_here_keeps_its_place():
    engine = Engine(max_running=1, overlap=False, clock=lambda: 100.0)
    engine.submit(1, [1], max_new=2)
    engine.submit(2, [2], max_new=2, waited_s=3.0)
    engine.submit(3, [3], max_new=2, waited_s=5.0, priority=-1)
    assert order_of(engine) == [2, 1, 3]


request = st.tuples(
    st.lists(st.integers(0, 2), min_size=1, max_size=30),
    st.integers(0, 25),
    st.integers(0, 12),  # the round it arrives in
    st.one_of(st.none(), st.integers(0, 30)),  # the round it is aborted in
    st.sampled_from([0, 0, 1, -2, 2**31 - 1]),  # its priority
)


@settings(max_examples=150, deadline=None)
@given(
    requests=st.lists(request, min_size=1, max_size=14),
    num_pages=st.integers(14, 60),
    page_size=st.sampled_from([1, 2, 4]),
    step_tokens=st.sampled_from([0, 5, 16]),
    max_running=st.integers(1, 6),
    overlap=st.booleans(),
    policy=st.sampled_from(["fcfs", "lpm"]),
    radix_cache=st.booleans(),
    eos=st.sampled_from([(), (3,), (3, 7, 11)]),
)
def test_whatever_happens(requests, num_pages, page_size, step_tokens, max_running, overlap, policy, radix_cache, eos):
    """Every sequence that is not aborted gets exactly its tokens, and every page is accounted for after every round."""
    engine = Engine(
        num_pages=max(num_pages, -(-56 // page_size)),
        page_size=page_size,
        max_running=max_running,
        step_tokens=step_tokens,
        overlap=overlap,
        policy=policy if radix_cache else "fcfs",
        radix_cache=radix_cache,
        eos=eos,
    )
    for _ in range(10):
        engine.scheduler.estimator.record(1)
    for now in range(32):
        for uid, (prompt, max_new, arrival, abort, priority) in enumerate(requests):
            if arrival == now:
                engine.submit(uid, prompt, max_new=max_new, priority=priority)
            if abort == now:
                engine.inbox.append(Abort("i", [uid]))
        engine.loop.run_once()
        engine.scheduler.check()
    engine.run()
    for uid, (prompt, max_new, arrival, abort, priority) in enumerate(requests):
        wanted = expected(prompt, max_new, set(eos))
        if abort is None or abort < arrival:
            assert engine.tokens(uid) == wanted
            assert engine.finish(uid) is not None
        else:
            assert engine.tokens(uid) == wanted[: len(engine.tokens(uid))]
    assert engine.scheduler.pool.available + engine.scheduler.tree.evictable_pages == engine.scheduler.config.num_pages


def test_the_first_output_says_how_long_a_sequence_waited():
    engine = Engine(max_running=1)
    engine.submit(1, [1, 2, 3], max_new=5)
    engine.submit(2, [4, 5, 6], max_new=5)
    engine.run()
    (queued_1, prefill_1), (queued_2, prefill_2) = (engine.outputs[uid][0].timing for uid in (1, 2))
    assert 0 <= queued_1 < queued_2
    assert min(prefill_1, prefill_2) > 0
    assert all(output.timing is None for uid in (1, 2) for output in engine.outputs[uid][1:])
