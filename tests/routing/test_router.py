"""Where requests go, and why. Times are given, so nothing here waits."""

from collections import Counter

import msgspec
import pytest

from raysgl.messages import CacheCleared, KVEvents, Load, PagesRemoved, PagesStored
from raysgl.routing import Decision, Refusal, ReplicaInfo, Router, RouteRequest
from raysgl.routing.board import DEFAULT_PREFILL_RATE, FLAT_ROWS, PACE_STEPS, WAIT_WEIGHT

P = 16
IDLE = Load(prefill_rate=1000.0, decode_rate=200.0, step_seconds=0.02, max_running=8, total_pages=10_000, free_pages=10_000)


def load(**changes) -> Load:

    return msgspec.structs.replace(IDLE, **changes)


def router_of(count=4, seed=0, max_queued=4, report=True, **loads) -> Router:
    router = Router(seed)
    for i in range(count):
        router.join(ReplicaInfo(f"r{i}", 1, "m", "address", page_size=P, max_queued=max_queued))
        if report:
            router.load(f"r{i}", 1, loads.get(f"r{i}", IDLE), 0.0)
    return router


def cache(router, replica, hashes, sequence=0):
    router.events(KVEvents(replica, 1, sequence, [PagesStored(0, list(hashes))]), 0.0)


def known_pages(router, hashes) -> dict[str, int]:
    """Leading pages by replica, cached or on their way."""
    hashes = list(hashes)
    coming = router.optimistic.extend(hashes, router.index.parts[0].runs(hashes), router.index.parts[0].bit_of)
    return {**router.index.match(hashes), **{name: pages for name, _, pages in coming}}


def prompt(start, pages, extra=0, **more) -> RouteRequest:
    """A prompt of so many pages, told apart by `start`."""
    return RouteRequest(list(range(start, start + pages)), pages * P + extra, **more)


def choose(router, request, now=0.0) -> Decision:
    (decision,) = router.choose([request], now)
    assert isinstance(decision, Decision)
    return decision


def test_the_prefix_decides():
    for seed in range(10):
        router = router_of(seed=seed)
        cache(router, "r1", range(100, 110))
        cache(router, "r2", range(100, 140))
        decision = choose(router, prompt(100, 50, 5))
        assert (decision.replica, decision.hit_pages, decision.tokens) == ("r2", 40, 10 * P + 5)
        assert decision.new_hashes == list(range(140, 150))
        assert decision.cost == pytest.approx((10 * P + 5) / 1000)


def test_a_fully_cached_prompt_still_costs_something():
    router = router_of(1)
    cache(router, "r0", range(4))
    assert choose(router, prompt(0, 4)).tokens == 1


def test_a_hot_prefix_spills_over_when_waiting_costs_more_than_recomputing():
    prefix = 100 * P  # 1.6 s of prefill
    worth = prefix / WAIT_WEIGHT  # a queue holds up later arrivals too
    for queued, expected in ((worth - 100, "r0"), (worth + 100, "other")):
        router = router_of(r0=load(queued_tokens=int(queued), running=1))
        cache(router, "r0", range(100))
        chosen = choose(router, prompt(0, 100, 10)).replica
        assert (chosen == "r0") == (expected == "r0")


def test_rates_are_each_replicas_own():
    router = router_of(2, r0=load(prefill_rate=10_000.0))
    cache(router, "r1", range(50))
    assert choose(router, prompt(0, 100)).replica == "r0"  # 0.16 s against 0.8 s


def test_an_unmeasured_replica_gets_the_others_mean():
    router = router_of(3, report=False)
    assert choose(router, prompt(0, 100)).cost == pytest.approx(100 * P / DEFAULT_PREFILL_RATE)
    router.load("r0", 1, load(prefill_rate=100.0), 1.0)
    router.load("r1", 1, load(prefill_rate=300.0), 1.0)
    router.load("r2", 1, load(prefill_rate=0.0), 1.0)
    cache(router, "r2", range(1000, 1010))
    assert choose(router, prompt(1000, 20), now=1.0).cost == pytest.approx(10 * P / 200)


def test_ties_are_broken_at_random():
    def chosen(seed, known):
        router = router_of(seed=seed)
        for replica in known:
            cache(router, replica, range(10))
        return choose(router, prompt(0, 10 if known else 0)).replica

    for known in ((), ("r0", "r1", "r2", "r3")):
        counts = Counter(chosen(seed, known) for seed in range(200))
        assert set(counts) == {"r0", "r1", "r2", "r3"} and max(counts.values()) < 90


def test_a_new_prefix_begins_where_every_ingress_would_begin_it():
    homes = Counter()
    for first in range(100, 3000, 15):
        chosen = set()
        for seed in range(4):
            router = router_of(seed=seed, r1=load(queued_tokens=10 * seed))  # what they know differs a little
            chosen.add(choose(router, prompt(first, 50)).replica)
        assert len(chosen) == 1
        homes.update(chosen)
    assert len(homes) == 4 and max(homes.values()) < 80
    # Not at the price of work, or of a long queue.
    router = router_of()
    cache(router, "r2", range(100, 101))
    assert choose(router, prompt(100, 50)).replica == "r2"
    (home,) = {choose(router_of(seed=seed), prompt(200, 5)).replica for seed in range(4)}
    router = router_of(**{home: load(queued_tokens=500)})
    assert choose(router, prompt(200, 5)).replica != home


def test_a_replica_far_slower_than_the_others_is_left_even_by_its_hottest_prefix():
    """Recomputing 100 pages among as many others costs more than its own pace saves; the next ones that hit the copy are not counted."""

    def chosen(rate):
        busy = {f"r{i}": load(running=30, max_running=64, decode_rate=30 / 0.02, step_seconds=1.0) for i in range(4)}
        busy["r0"] = load(running=30, max_running=64, decode_rate=rate, step_seconds=1.0)
        router = router_of(**busy)
        cache(router, "r0", range(100))
        return choose(router, prompt(0, 101)).replica

    assert chosen(30 / 0.02) == chosen(30 / 0.03) == "r0"
    assert chosen(30 / 0.3) != "r0"


def test_the_only_busy_replica_is_not_slow():
    router = router_of(r0=load(running=2, decode_rate=2 / 0.01, step_seconds=1.0))
    cache(router, "r0", range(20))
    assert choose(router, prompt(0, 21)).replica == "r0"


def test_requests_sent_count_at_once_and_until_their_first_token():
    router = router_of(4)
    decisions = router.choose([prompt(i * 1000, 20) for i in range(8)], 0.0)
    assert Counter(decision.replica for decision in decisions) == {f"r{i}": 2 for i in range(4)}
    first = next(decision for decision in decisions if decision.replica == "r2")
    for decision in decisions:
        if decision.replica == "r2":
            router.first_token(decision.ticket, 1.0)
            router.first_token(decision.ticket, 1.0)
            router.finish(decision.ticket, 1.0)
            router.finish(decision.ticket, 1.0)
    assert choose(router, prompt(50_000, 20), 1.0).replica == "r2"
    assert first.epoch == 1


def test_a_report_replaces_what_it_includes_and_no_more():
    router = router_of(2)
    early = choose(router, prompt(0, 100), now=1.0)
    router.load(early.replica, 1, load(queued_tokens=100 * P, waiting=1), 2.0)
    book = router._replicas[early.replica].book
    assert book.queued_tokens == 100 * P  # not twice
    router.load(early.replica, 1, load(queued_tokens=50 * P), 3.0)
    assert book.queued_tokens == 50 * P
    router.first_token(early.ticket, 3.1)  # the rest of it is done, which the report does not know yet
    assert book.queued_tokens == 0
    router.load(early.replica, 1, load(running=1), 4.0)
    late = book.sent(4.0, 160, 1, [])
    router.load(early.replica, 1, load(running=1), 4.001)  # made before the request was there
    assert book.queued_tokens == 160
    router.load(early.replica, 1, load(running=1), 5.0)
    assert late.absorbed and book.queued_tokens == 0
    begun = book.sent(6.0, 160, 1, [])
    book.first_token(begun)
    router.load(early.replica, 1, load(running=1), 6.001)  # made before, again: it runs beside the one reported
    assert book.occupancy() == (2, 0) and book.queued_tokens == 0


def test_an_older_report_is_ignored():
    router = router_of(1)
    router.load("r0", 1, load(steps=10, queued_tokens=500), 1.0)
    router.load("r0", 1, load(steps=9, queued_tokens=0), 1.1)
    router.load("r0", 2, load(steps=99, queued_tokens=0), 1.1)
    assert router.loads()["r0"].queued_tokens == 500


def test_who_has_released_memory_gets_nothing():
    asleep = load(released=("weights",), changes=1, steps=10)
    router = router_of(2, r0=asleep)
    cache(router, "r0", range(100, 140))
    router.load("r0", 1, load(steps=10), 0.5)  # by another way, from before
    request = prompt(100, 50, accepted=True)
    assert choose(router, request).replica == "r1", "though r0 knows the prompt"
    router.load("r1", 1, load(released=("kv_cache",), changes=1), 1.0)
    assert router.choose([request], 1.0) == [Refusal("asleep", 1.0)]
    assert router.choose([prompt(100, 50, exclude=frozenset({"r0", "r1"}))], 1.0) == [Refusal("none", 1.0)]
    router.load("r0", 1, load(changes=2, steps=10), 2.0)
    assert choose(router, request, 2.0).replica == "r0"


def test_requests_that_arrive_together_with_a_new_prefix_follow_the_first():
    for seed in range(5):
        router = router_of(seed=seed)
        together = [RouteRequest([*range(100), 1000 + i], 101 * P + 3) for i in range(8)]
        other = [RouteRequest([*range(5000, 5100), 6000 + i], 101 * P + 3) for i in range(8)]
        mixed = [request for pair in zip(together, other, strict=True) for request in pair]
        decisions = router.choose(mixed, 0.0)
        homes = [{d.replica for d in decisions[0::2]}, {d.replica for d in decisions[1::2]}]
        assert len(homes[0]) == len(homes[1]) == 1 and homes[0] != homes[1]
        assert [d.hit_pages for d in decisions[0::2]] == [0] + [100] * 7


def test_a_prefix_too_short_to_wait_for_does_not_gather_everything():
    router = router_of(max_queued=100)
    decisions = router.choose([RouteRequest([1, *range(1000 * i, 1000 * i + 50)], 51 * P) for i in range(1, 13)], 0.0)
    assert len({decision.replica for decision in decisions}) == 4


def test_optimistic_pages_are_confirmed_or_expire():
    router = router_of(2)
    first = choose(router, prompt(0, 50))
    where = first.replica
    assert choose(router, prompt(0, 50)).replica == where
    router.events(KVEvents(where, 1, 0, [PagesStored(0, list(range(30)))]), 0.5)
    assert known_pages(router, range(50)) == {where: 50}
    router.first_token(first.ticket, 1.0)
    assert len(router.optimistic) == 20  # what was confirmed does not come back
    router.choose([], 2.9)
    assert known_pages(router, range(50)) == {where: 50}
    router.choose([], 3.1)
    assert known_pages(router, range(50)) == {where: 30}
    assert len(router.optimistic) == 0
    router.events(KVEvents(where, 1, 1, [PagesRemoved(list(range(10, 30)))]), 3.2)
    assert known_pages(router, range(50)) == {where: 10}


def test_a_request_that_never_answers_is_forgotten():
    router = router_of(2)
    decision = choose(router, prompt(0, 50))
    router.choose([], 59.0)
    assert len(router.optimistic) == 50
    router.choose([], 61.0)
    assert len(router.optimistic) == 0
    router.finish(decision.ticket, 62.0)


def test_a_dead_replica_takes_its_pages_and_requests_with_it():
    router = router_of(2)
    cache(router, "r0", range(50))
    decision = choose(router, prompt(0, 80))
    assert decision.replica == "r0"
    router.leave("r0", 0)  # an earlier life: nothing happens
    assert "r0" in router.loads()
    router.leave("r0", 1)
    assert len(router.optimistic) == 0
    assert choose(router, prompt(0, 80)).replica == "r1"
    router.join(ReplicaInfo("r0", 2, "m", "address"))
    router.first_token(decision.ticket, 1.0)
    router.finish(decision.ticket, 1.0)
    assert router._replicas["r0"].book.occupancy() == (0, 0)


def test_draining_and_excluded_replicas_get_nothing():
    router = router_of(3)
    cache(router, "r0", range(50))
    router.drain("r0", 1)
    for _ in range(10):
        assert choose(router, prompt(0, 50, exclude=frozenset({"r1"}))).replica == "r2"
    router.drain("r0", 1, False)
    assert choose(router, prompt(0, 40)).replica == "r0"
    for i in range(3):
        router.drain(f"r{i}", 1)
    assert router.choose([prompt(0, 5)], 0.0) == [Refusal("none", 1.0)]


def test_full_queues_refuse_with_the_time_to_wait():
    full = load(running=8, waiting=4, queued_tokens=20_000)
    router = router_of(2, r0=full, r1=full)
    (refusal,) = router.choose([prompt(0, 5)], 0.0)
    assert refusal == Refusal("full", 10.0)
    router.load("r1", 1, load(running=8, waiting=3), 1.0)
    assert choose(router, prompt(0, 5), 1.0).replica == "r1"
    assert isinstance(router.choose([prompt(9, 5)], 1.0)[0], Refusal)  # the last place is taken


def test_no_waiting_allowed_still_means_running():
    router = router_of(1, max_queued=0)
    decisions = router.choose([prompt(i * 100, 5) for i in range(10)], 0.0)
    assert [isinstance(d, Decision) for d in decisions] == [True] * 8 + [False] * 2


def test_places_and_pages_that_are_not_free_cost_time():
    router = router_of(2, r0=load(running=8, waiting=1, queued_tokens=10))
    cache(router, "r0", range(10))
    assert choose(router, prompt(0, 12)).replica == "r1"
    router = router_of(2, r0=load(free_pages=5, cached_pages=2, running=4))
    cache(router, "r0", range(5))
    assert choose(router, prompt(0, 12)).replica == "r1"


def test_a_quieter_batch_is_preferred_but_less_than_a_prefix():
    router = router_of(2, r0=load(running=6))
    for i in range(3):
        decision = choose(router, prompt(1000 * i, 1))
        assert decision.replica == "r1"
        router.finish(decision.ticket, 0.0)
    cache(router, "r0", range(20))
    assert choose(router, prompt(0, 20)).replica == "r0"


def test_who_runs_or_waits_there_is_held_up_too():
    """Where nine run, and six at the mean replica, the work counts for itself and seven and a half others."""
    router = router_of(2, max_queued=100, r0=load(running=9, max_running=64), r1=load(running=3, max_running=64))
    pace = [PACE_STEPS * min(0.02, rows / 200) * rows / (FLAT_ROWS + rows) for rows in (9, 3)]
    costs = router._fresh_board().costs(500, 1, None, None)
    assert costs.tolist() == pytest.approx([0.5 * 8.5 + pace[0], 0.5 * 5.5 + pace[1]])


def test_whole_prompts_that_a_replica_reports_are_not_what_it_will_compute():
    """Eight requests that share a new prefix of 100 pages: the replica reports all their tokens, the line knows better."""
    router = router_of(2, max_queued=100)
    together = [choose(router, RouteRequest([*range(100), 1000 + i], 101 * P), 1.0) for i in range(8)]
    (home,) = {decision.replica for decision in together}
    router.load(home, 1, load(queued_tokens=8 * 101 * P, waiting=7, running=1), 2.0)
    book = router._replicas[home].book
    assert book.queued_tokens == 101 * P + 7 * P
    router.load(home, 1, load(queued_tokens=3 * P, running=8), 3.0)
    assert book.queued_tokens == 3 * P
    for decision in together[:7]:
        router.first_token(decision.ticket, 3.1)
    assert book.queued_tokens == 0 and len(book._line) == 1
    router.load(home, 1, load(running=8), 4.0)
    assert not book._line
    # Of another ingress's request nobody says when it began; that a later one of ours has begun tells.
    router.routed(home, 1, 4000, [], 5.0)
    mine = choose(router, RouteRequest([*range(100), 2000], 101 * P), 5.1)
    assert mine.replica != home or book.queued_tokens > 4000
    flight = book.sent(5.2, 160, 1, [])
    assert book._line_tokens >= 4160
    book.first_token(flight)
    assert book._line_tokens < 4000


def test_a_book_begun_under_load_believes_the_report():
    router = router_of(1, r0=load(queued_tokens=5000, running=3))
    book = router._replicas["r0"].book
    assert book.queued_tokens == 5000
    book.sent(1.0, 160, 1, [])
    assert book.queued_tokens == 5160
    router.load("r0", 1, load(queued_tokens=4000, running=3), 12.0)  # by now the old ones have had their turn
    assert book.queued_tokens == 160


def test_an_unreported_request_does_not_scare_others_away_from_their_prefix():
    router = router_of(4)
    cache(router, "r2", range(40))
    homes = {choose(router, RouteRequest([*range(40), 900 + i], 41 * P)).replica for i in range(4)}
    assert homes == {"r2"}


def test_prefixes_on_many_replicas_and_wide_masks():
    """More replicas than are looked at one by one, and bits that change when a cache is cleared."""
    router = router_of(80)
    for i in range(80):
        cache(router, f"r{i}", range(100, 120 if i == 37 else 104))
    assert choose(router, prompt(100, 30)).replica == "r37"
    router.events(KVEvents("r37", 1, 1, [CacheCleared()]), 0.0)
    router.events(KVEvents("r5", 1, 1, [PagesStored(0, list(range(104, 125)))]), 0.0)
    decision = choose(router, prompt(100, 28))
    assert (decision.replica, decision.hit_pages) == ("r5", 25)
    router.leave("r5", 1)
    assert choose(router, prompt(100, 27)).hit_pages >= 4


def chosen_by(policy, requests, busy=None, known=()):
    router = Router(0, policy=policy)
    for i in range(4):
        router.join(ReplicaInfo(f"r{i}", 1, "m", "address", page_size=P, max_queued=1000))
        router.load(f"r{i}", 1, load(max_running=500, running=(busy or {}).get(f"r{i}", 0)), 0.0)
    for replica, hashes in known:
        cache(router, replica, hashes)
    return [choose(router, request).replica for request in requests]


def test_other_policies_do_what_their_names_say():
    same = [prompt(0, 10)] * 8
    assert chosen_by("round_robin", same) == ["r0", "r1", "r2", "r3"] * 2
    assert chosen_by("round_robin", [prompt(0, 10, exclude=frozenset({"r1"}))] * 3)[1] != "r1"
    assert Counter(chosen_by("least_loaded", same)) == {f"r{i}": 2 for i in range(4)}
    assert chosen_by("least_loaded", same[:1], {"r0": 3, "r1": 1, "r2": 2, "r3": 2}, [("r0", range(10))]) == ["r1"]
    known = [("r2", range(4))]
    assert chosen_by("cache_aware", same[:1], {"r2": 60}, known) == ["r2"]
    assert chosen_by("cache_aware", same[:1], {"r2": 65}, known) != ["r2"], "out of balance"
    assert chosen_by("cache_aware", [prompt(0, 15)], {"r2": 60}, known) != ["r2"], "too little of the prompt"


def test_a_session_keeps_its_replica_among_equals():
    homes = {}
    for name in "abcdefgh":
        homes[name] = {choose(router_of(seed=seed), prompt(seed * 100, 10, session=name)).replica for seed in range(5)}
        assert len(homes[name]) == 1
    assert len(set().union(*homes.values())) > 1
    for name, home in homes.items():
        faster = router_of(r0=load(prefill_rate=1100.0), r3=load(prefill_rate=900.0))
        assert {choose(faster, prompt(0, 10, session=name)).replica} == home
    (home,) = homes["a"]
    router = router_of()
    elsewhere = next(f"r{i}" for i in range(4) if f"r{i}" != home)
    cache(router, elsewhere, range(50))
    assert choose(router, prompt(0, 50, session="a")).replica == elsewhere


def test_what_other_ingresses_send_counts():
    router = router_of(2)
    router.routed("r0", 1, 1600, list(range(100)), 0.0)
    assert choose(router, prompt(5000, 10)).replica == "r1"
    assert choose(router, prompt(0, 110)).replica == "r0"
    router.routed("r0", 2, 1600, [7], 0.0)
    router.routed("r9", 1, 1600, [7], 0.0)
    assert set(router.loads()) == {"r0", "r1"}
