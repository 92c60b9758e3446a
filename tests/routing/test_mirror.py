"""Coordinator and mirrors by example; `test_mirror_model.py` has the random histories."""

import msgspec
import pytest

from raysgl.messages import CacheCleared, KVEvents, Load, PagesStored
from raysgl.overview import ScalingDecision, ScalingFigures
from raysgl.routing import CoordinatorState, Decision, Mirror, ReplicaInfo, Reply, RouteRequest
from raysgl.routing.coordinator_state import KEPT_DECISIONS
from raysgl.routing.hot_prefixes import HALF_LIFE_S
from raysgl.routing.messages import CacheChanged, Updates


def info(replica="a", epoch=1, model="m", **more):
    return ReplicaInfo(replica, epoch, model, f"tcp://{replica}", **more)


def stored(replica, sequence, *hashes, epoch=1, load=None):
    return KVEvents(replica, epoch, sequence, [PagesStored(0, list(hashes))] if hashes else [], load)


def follow(mirror, coordinator, now=0.0):
    """One poll, over the wire."""
    updates = coordinator.updates_since(*mirror.cursors[0], now)
    return mirror.apply(msgspec.msgpack.decode(msgspec.msgpack.encode(updates), type=Updates), now)


def coming(mirror, hashes):
    """(replica, cached pages, cached and coming pages) where some are on their way."""
    router = mirror.routers["m"]
    (index,) = router.index.parts
    return router.optimistic.extend(hashes, index.runs(hashes), index.bit_of)


@pytest.fixture
def coordinator():
    coordinator = CoordinatorState(epoch=100, now=0.0, settle_s=3.0, timeout_s=10.0)
    coordinator.register(info("a"), 0.0)
    coordinator.register(info("b"), 0.0)
    coordinator.apply_events(stored("a", 0, 1, 2, 3, load=Load(running=2)), 0.0)
    return coordinator


def test_a_new_mirror_gets_everything_then_deltas(coordinator):
    mirror = Mirror("i1")
    assert mirror.staleness(5.0) == float("inf")
    assert follow(mirror, coordinator)
    assert mirror.routers["m"].index.match([1, 2, 3]) == {"a": 3}
    assert mirror.loads()["m"]["a"].running == 2
    assert not coordinator.has_news(*mirror.cursors[0], 0.0)
    coordinator.apply_events(stored("b", 0, 1), 1.0)
    coordinator.apply_load("b", 1, Load(waiting=7), 1.0)
    coordinator.set_draining("b", 1)
    assert coordinator.has_news(*mirror.cursors[0], 1.0)
    updates = coordinator.updates_since(*mirror.cursors[0], 1.0)
    assert updates.views is None and len(updates.deltas) == 3
    assert mirror.apply(updates, 1.0) and not mirror.apply(updates, 1.0)  # a repeated answer changes nothing
    assert mirror.routers["m"].index.match([1, 2, 3]) == {"a": 3, "b": 1}
    assert mirror.loads()["m"]["b"].waiting == 7
    assert [i.draining for i in mirror.replicas("m")] == [False, True]
    assert mirror.staleness(1.5) == 0.5


def test_a_mirror_far_behind_gets_everything(coordinator):
    coordinator._max_log = 200
    mirror = Mirror("i1")
    follow(mirror, coordinator)
    for sequence in range(50):
        coordinator.apply_events(stored("b", sequence, sequence), 1.0)
    assert coordinator.updates_since(*mirror.cursors[0], 1.0).views is not None
    assert follow(mirror, coordinator)
    assert mirror.routers["m"].index.hashes_of("b") == set(range(50))


def test_scaling_decisions_reach_mirrors_old_and_new_and_outlive_the_coordinator(coordinator):
    mirror = Mirror("i1")
    follow(mirror, coordinator)
    made = [ScalingDecision("m", float(i), i, i + 1, "why", ScalingFigures(i)) for i in range(KEPT_DECISIONS + 3)]
    for decision in made:
        coordinator.scaled(decision)
    coordinator.scaled(ScalingDecision("asleep", 1.0, 0, 1, "why", ScalingFigures()))
    newest_first = made[: -KEPT_DECISIONS - 1 : -1]
    late = Mirror("late")
    for follower in (mirror, late):
        assert follow(follower, coordinator)
        assert follower.scaling_decisions()["m"] == newest_first
        assert len(follower.scaling_decisions()["asleep"]) == 1
    again = CoordinatorState(epoch=200, now=10.0, settle_s=3.0)
    again.register(info("a"), 10.0)
    another = ScalingDecision("m", 1000.0, 2, 1, "why", ScalingFigures())
    again.scaled(another)
    assert follow(mirror, again, 14.0)
    assert mirror.scaling_decisions()["m"] == [another, *newest_first[:-1]]


def test_hot_prefixes_are_merged_over_ingresses(coordinator):
    coordinator.apply_events(stored("b", 0, 1), 1.0)
    mirrors = [Mirror("i1", beginnings=True), Mirror("i2")]
    for mirror in mirrors:
        follow(mirror, coordinator)
        for _ in range(4):
            mirror.hot.reused("m", [1, 2, 3], 2, 16, 1.0, bytes(400))
    first, second = mirrors
    (alone,) = first.hot_prefixes(1.0)["m"]
    assert (alone.hash, alone.tokens, alone.replicas, len(alone.beginning)) == (2, 32, 1, 32 * 4)
    for mirror in mirrors:
        coordinator.hot(mirror.hot.take_news(1.0))
        assert mirror.hot.take_news(1.5) == []
    for mirror in mirrors:
        follow(mirror, coordinator, 1.0)
        (both,) = mirror.hot_prefixes(1.0)["m"]
        assert both.hits_per_second == pytest.approx(2 * alone.hits_per_second)
        (later,) = mirror.hot_prefixes(1.0 + HALF_LIFE_S)["m"]
        assert later.hits_per_second == pytest.approx(alone.hits_per_second)
    assert second.hot.take_news(3.1)[0].prefixes[0].beginning == b"", "not kept where it is not asked for"


def test_long_logs_come_in_parts(coordinator):
    mirror = Mirror("i1")
    follow(mirror, coordinator)
    for sequence in range(25):
        coordinator.apply_events(stored("b", sequence, sequence), 1.0)
    polls = 0
    while coordinator.has_news(*mirror.cursors[0], 1.0):
        assert mirror.apply(coordinator.updates_since(*mirror.cursors[0], 1.0, max_deltas=10), 1.0)
        polls += 1
    assert polls == 3 and mirror.routers["m"].index.hashes_of("b") == set(range(25))


def test_gaps_ask_for_a_snapshot_and_are_not_passed_on(coordinator):
    mirror = Mirror("i1")
    follow(mirror, coordinator)
    assert coordinator.apply_events(stored("a", 2, 9, load=Load(running=5)), 1.0) == Reply(100, "snapshot")
    assert coordinator.snapshot_requests() == [("a", 1)]
    assert coordinator.apply_load("a", 1, None, 1.0).action == "snapshot"
    follow(mirror, coordinator)
    assert mirror.routers["m"].index.hashes_of("a") == {1, 2, 3} and mirror.loads()["m"]["a"].running == 5
    assert coordinator.apply_events(KVEvents("a", 1, 3, [CacheCleared(), PagesStored(0, [8])]), 1.0) == Reply(100)
    follow(mirror, coordinator)
    assert mirror.routers["m"].index.hashes_of("a") == {8} and coordinator.snapshot_requests() == []


def test_lives(coordinator):
    assert coordinator.apply_events(stored("c", 0, 1), 0.0).action == "register"
    assert coordinator.register(info("a", epoch=2), 1.0).action == "none"
    assert coordinator.apply_events(stored("a", 1, 7, epoch=1), 1.0).action == "dead"
    assert coordinator.register(info("a", epoch=1), 1.0).action == "dead"
    coordinator.leave("a", 1)
    assert [i.epoch for i in coordinator.replicas("m")] == [1, 2]
    coordinator.leave("a", 2)
    assert coordinator.apply_events(stored("a", 0, 7, epoch=2), 1.0).action == "dead"
    assert coordinator.register(info("a", epoch=2), 1.0).action == "dead"
    assert coordinator.register(info("a", epoch=3), 1.0).action == "none"
    coordinator.leave("d", 5)  # before its registration has come
    assert coordinator.register(info("d", epoch=5), 1.0).action == "dead"


def test_the_silent_expire_but_may_come_back(coordinator):
    coordinator.apply_load("b", 1, None, 9.0)
    assert [i.replica for i in coordinator.expire(10.5)] == ["a"]
    assert coordinator.apply_events(stored("a", 1, 4), 11.0).action == "register"
    coordinator.register(info("a"), 11.0)
    assert coordinator.apply_events(stored("a", 1, 4), 11.0).action == "snapshot"


def test_a_registered_replica_may_start_draining_by_registering_again(coordinator):
    coordinator.register(info("a", draining=True), 1.0)
    assert [i.draining for i in coordinator.replicas("m")] == [False, True] or coordinator.replicas("m")[0].draining
    mirror = Mirror("i1")
    follow(mirror, coordinator)
    (decision,) = mirror.choose("m", [RouteRequest([1, 2, 3], 50)], 1.0)
    assert decision.replica == "b"


def test_a_restarted_coordinator_does_not_make_mirrors_forget(coordinator):
    mirror = Mirror("i1")
    follow(mirror, coordinator)
    (before,) = mirror.choose("m", [RouteRequest([1, 2, 3, 4], 70)], 10.0)
    again = CoordinatorState(epoch=200, now=10.0, settle_s=3.0)
    assert not again.has_news(*mirror.cursors[0], 10.0)
    assert not follow(mirror, again, 10.0)
    again.register(info("b"), 11.0)
    assert not follow(mirror, again, 11.0) and len(mirror.replicas("m")) == 2
    fresh = Mirror("i2")
    assert follow(fresh, again, 11.0) and len(fresh.replicas("m")) == 1
    again.register(info("a"), 12.0)
    again.apply_events(KVEvents("a", 1, 9, [CacheCleared(), PagesStored(0, [1, 2])]), 12.0)
    assert again.has_news(*mirror.cursors[0], 13.0) and follow(mirror, again, 13.0)
    assert mirror.routers["m"].index.match([1, 2, 3]) == {"a": 2}
    assert mirror.cursors[0] == (200, again.version)
    # What only the ingress knew is still there: its request, and the pages on their way.
    assert coming(mirror, [1, 2, 3, 4]) == []
    assert mirror.routers["m"]._replicas["a"].book.occupancy() == (3, 0)
    mirror.finish("m", before.ticket, 13.0)
    assert mirror.routers["m"]._replicas["a"].book.occupancy() == (2, 0)


def test_notices_reach_the_other_mirrors_only(coordinator):
    mirrors = [Mirror("i1"), Mirror("i2")]
    for mirror in mirrors:
        follow(mirror, coordinator)
    (decision,) = mirrors[0].choose("m", [RouteRequest([50, 51, 52], 60)], 0.0)
    notices = mirrors[0].take_routed()
    assert len(notices) == 1 and mirrors[0].take_routed() == []
    coordinator.routed([*notices, msgspec.structs.replace(notices[0], epoch=9)])
    for mirror in mirrors:
        follow(mirror, coordinator)
        book = mirror.routers["m"]._replicas[decision.replica].book
        assert book.queued_tokens == 60
        assert coming(mirror, [50, 51]) == [(decision.replica, 0, 2)]
    (second,) = mirrors[1].choose("m", [RouteRequest([50, 51, 52, 53], 70)], 0.0)
    assert (second.replica, second.hit_pages) == (decision.replica, 3)


def test_a_lost_replica_is_not_used_whatever_the_coordinator_says(coordinator):
    mirror = Mirror("i1")
    follow(mirror, coordinator)
    mirror.lost("m", "a", 1)
    coordinator.apply_events(stored("a", 1, 4, load=Load()), 0.0)
    assert follow(mirror, coordinator) and [i.replica for i in mirror.replicas("m")] == ["b"]
    restarted = CoordinatorState(epoch=200, now=-10.0)
    restarted.register(info("a"), 0.0)
    assert follow(mirror, restarted) and mirror.replicas("m") == []
    (refusal,) = mirror.choose("m", [RouteRequest([1], 20)], 0.0)
    assert not isinstance(refusal, Decision)
    restarted.register(info("a", epoch=2), 0.0)
    assert follow(mirror, restarted) and mirror.replicas("m")[0].epoch == 2


def test_models_are_apart(coordinator):
    coordinator.register(info("c", model="other"), 0.0)
    coordinator.apply_events(stored("c", 0, 1, 2), 0.0)
    mirror = Mirror("i1")
    follow(mirror, coordinator)
    assert {d.replica for _ in range(5) for d in mirror.choose("other", [RouteRequest([1, 2], 40)], 0.0)} == {"c"}
    assert mirror.routers["m"].index.match([1, 2]) == {"a": 2}
    assert [r.reason for r in mirror.choose("unknown", [RouteRequest([1], 9)], 0.0)] == ["none"]
    assert set(coordinator.loads()) == {"m", "other"}


def test_log_entries_do_not_change_later(coordinator):
    late = Mirror("late")
    updates = coordinator.updates_since(-1, -1, 0.0)
    coordinator.set_draining("a", 1)
    late.apply(updates, 0.0)
    assert not late.replicas("m")[0].draining
    assert isinstance(coordinator._log[2][0], CacheChanged)
    late.drain("m", "a", 1)
    assert not updates.views[0].replicas[0].draining
