"""Batches of KV events: numbering, merging, snapshots."""

from raysgl.cache import EventLog
from raysgl.messages import CacheCleared, Load, PagesRemoved, PagesStored


def test_batches_are_numbered_and_carry_the_load():
    log = EventLog("r", 7)
    assert log.drain() is None
    log.append(PagesStored(0, [1]))
    first = log.drain()
    assert (first.replica, first.epoch, first.sequence, first.load) == ("r", 7, 0, None)
    second = log.drain(Load(running=3))
    assert (second.sequence, second.events, second.load.running) == (1, [], 3)
    assert log.drain() is None


def test_neighbours_merge_and_a_clear_ends_what_was_pending():
    log = EventLog("r", 1)
    for event in (PagesStored(0, [1, 2]), PagesStored(2, [3]), PagesStored(2, [4]), PagesRemoved([3]), PagesRemoved([4])):
        log.append(event)
    assert log.drain().events == [PagesStored(0, [1, 2, 3]), PagesStored(2, [4]), PagesRemoved([3, 4])]
    log.append(PagesStored(0, [9]))
    log.append(CacheCleared())
    assert log.drain().events == [CacheCleared()]


def test_a_snapshot_replaces_pending_events_and_is_cut():
    log = EventLog("r", 1)
    log.append(PagesStored(0, [1]))
    runs = [PagesStored(0, [1, 2, 3]), PagesStored(3, [4]), PagesStored(3, [5, 6])]
    batches = log.snapshot(runs, Load(running=1), max_pages=4)
    assert [batch.sequence for batch in batches] == [0, 1]
    assert batches[0].events == [CacheCleared(), *runs[:2]] and batches[1].events == runs[2:]
    assert batches[0].load is None and batches[1].load.running == 1
    assert log.drain() is None and log.sequence == 2
    assert [batch.events for batch in log.snapshot([])] == [[CacheCleared()]]
