"""The prefix index: longest runs, sequence numbers and epochs, bits that are used again, dump and load."""

import functools
import operator
import random
from array import array

from hypothesis import given
from hypothesis import strategies as st

from raysgl.messages import CacheCleared, CacheMark, KVEvents, PagesRemoved, PagesStored
from raysgl.routing import Applied, PrefixIndex
from raysgl.routing.index import SHARDS


def batch(replica, sequence, *events, epoch=1):
    return KVEvents(replica, epoch, sequence, list(events))


def index_of(**pages):
    index = PrefixIndex()
    for replica, hashes in pages.items():
        index.add(replica, 1)
        assert index.apply(batch(replica, 0, PagesStored(0, list(hashes)))) is Applied.OK
    return index


def test_match_counts_leading_pages_of_each_replica():
    index = index_of(a=[1, 2, 3], b=[1], c=[2, 3], d=[1, 2, 3, 4, 5])
    assert index.match([1, 2, 3, 4]) == {"a": 3, "b": 1, "d": 4}
    assert index.match([9, 1]) == {} and index.match([]) == {}
    assert PrefixIndex().match([1]) == {}


@given(
    st.lists(st.integers(0, 12), min_size=0, max_size=12),
    st.lists(st.tuples(st.integers(0, 69), st.integers(0, 12)), max_size=99),
)
def test_match_equals_the_plain_count(prompt, pairs):
    held: dict[str, list[int]] = {}
    for replica, page in pairs:
        held.setdefault(f"r{replica}", []).append(page)
    expected = {}
    for replica, pages in held.items():
        run = next((i for i, page in enumerate(prompt) if page not in pages), len(prompt))
        if run:
            expected[replica] = run
    index = index_of(**held)
    assert index.match(prompt) == expected
    again = PrefixIndex.load(index.dump())
    assert again.match(prompt) == expected
    assert all(again.hashes_of(r) == set(pages) and again.pages(r) == len(set(pages)) for r, pages in held.items())


@given(st.integers(1, 40), st.lists(st.tuples(st.integers(0, 69), st.integers(1, 40)), max_size=20), st.integers(2, 9))
def test_strides_find_the_same_runs_where_pages_are_held_with_those_before_them(length, prefixes, stride):
    chain = list(range(100, 140))
    index = index_of(**{f"r{replica}": chain[:pages] for replica, pages in prefixes})
    assert index.runs(chain[:length], stride) == index.runs(chain[:length], 1)
    assert {index.bit_of(name) for name in index.match(chain)} == {
        bit for mask, _ in index.runs(chain) for bit in range(80) if mask >> bit & 1
    }


def test_gaps_wait_for_a_snapshot():
    index = index_of(a=[1])
    assert index.apply(batch("a", 2, PagesStored(0, [5]))) is Applied.GAP
    assert index.unsynced() == [("a", 1)] and not index.synced("a")
    assert index.apply(batch("a", 3, PagesStored(0, [6]))) is Applied.GAP
    assert (
        index.apply(batch("a", 1, PagesStored(0, [7]))) is Applied.GAP
    )  # the lost one, late: the later ones are still missing
    assert index.hashes_of("a") == {1}
    assert index.apply(batch("a", 4, CacheCleared(), PagesStored(0, [8]))) is Applied.OK
    assert index.hashes_of("a") == {8} and index.unsynced() == []
    assert index.apply(batch("a", 4, PagesStored(0, [9]))) is Applied.DUPLICATE
    assert index.apply(batch("a", 5, PagesRemoved([8]))) is Applied.OK
    assert index.hashes_of("a") == set() == index.hashes_of("unknown")


def test_epochs():
    index = index_of(a=[1])
    index.add("a", 2)
    assert index.hashes_of("a") == set()
    assert index.apply(batch("a", 1, PagesStored(0, [3]), epoch=1)) is Applied.DEAD
    assert index.apply(batch("a", 0, PagesStored(0, [3]), epoch=3)) is Applied.UNKNOWN
    assert index.apply(batch("b", 0, PagesStored(0, [3]))) is Applied.UNKNOWN
    assert index.apply(batch("a", 0, PagesStored(0, [4]), epoch=2)) is Applied.OK
    index.drop("a")
    index.drop("a")
    assert index.match([4]) == {} and "a" not in index


def test_bits_are_swept_and_used_again():
    """A thousand lives of replicas on the same pages leave neither pages nor ever wider masks behind."""
    index = PrefixIndex()
    index.add("stays", 1)
    index.apply(batch("stays", 0, PagesStored(0, list(range(0, 600, 2)))))
    choose = random.Random(0)
    for life in range(1000):
        index.add("comes", life)
        pages = choose.sample(range(600), 30)
        index.apply(batch("comes", 0, PagesStored(0, pages), epoch=life))
        if life % 3 == 0:
            index.apply(batch("comes", 1, CacheCleared(), PagesStored(0, pages[:3]), epoch=life))
        assert index.hashes_of("comes") == set(pages[:3] if life % 3 == 0 else pages)
    assert index.hashes_of("stays") == set(range(0, 600, 2))
    index.drop("comes")
    for sequence in range(1, 5):
        index.apply(batch("stays", sequence, PagesStored(0, [0])))
    masks = [mask for shard in index._shards for mask in shard.values()]
    assert len(masks) == 300 and len(set(masks)) == 1
    assert index.num_bits < 10 and not index._retired
    assert not any(index.wrong_masks(shard) for shard in range(SHARDS))


def test_marks_are_taken_down_with_the_batch_that_asks():
    pages = range(5, 900, 7)
    index = index_of(a=[1, 2, 300], b=[2])
    index.apply(KVEvents("a", 1, 1, [PagesStored(0, list(pages)), PagesRemoved([2])], mark=1))
    index.apply(batch("a", 2, PagesStored(0, [1000])))
    held = {1, 300, *pages}
    assert index.marks() == [CacheMark("a", 1, 0, 1, len(held), functools.reduce(operator.xor, held))]
    index.apply(KVEvents("b", 1, 2, [], mark=1))  # a gap
    assert len(index.marks()) == 1
    again = PrefixIndex.load(index.dump())
    again.apply(KVEvents("a", 1, 3, [PagesRemoved([1000])], mark=2))
    (mark,) = again.marks()
    assert mark == CacheMark("a", 1, 0, 3, len(held), index.marks()[0].digest, array("Q", sorted(held)).tobytes())
    index.apply(KVEvents("a", 1, 3, [CacheCleared()], mark=1))
    assert index.marks() == [CacheMark("a", 1, 0, 3, 0, 0)]


def test_a_mask_that_no_event_made_is_found():
    index = index_of(a=[1, 2, 300], b=[2])
    assert not any(index.wrong_masks(shard) for shard in range(SHARDS))
    index._shards[2][2] ^= 1 << index.bit_of("b")
    assert [index.wrong_masks(shard) for shard in (1, 2, 3)] == [set(), {"b"}, set()]


def test_wide_masks_survive_a_dump():
    index = index_of(**{f"r{i}": [i, 1000] for i in range(70)})
    index.drop("r3")
    again = PrefixIndex.load(index.dump())
    assert again.match([1000]) == {f"r{i}": 1 for i in range(70) if i != 3}
    assert again.match([69, 1000]) == {"r69": 2} and again.match([3]) == {}
