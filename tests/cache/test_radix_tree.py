"""The radix tree by example: splits, duplicates, locks, eviction order. `test_radix_model.py` has the random sequences."""

import subprocess
import sys

import pytest

from raysgl.cache import PagePool, RadixTree, page_hashes
from raysgl.messages import CacheCleared, PagesRemoved, PagesStored, pack_ids

P = 4  # page size


def tokens_of(*pages: int) -> list[int]:
    """Pages that are told apart by one number each."""
    return [page * 10 + i for page in pages for i in range(P)]


def test_match_finds_whole_pages_of_the_longest_prefix():
    tree = RadixTree(P)
    tree.insert(tokens_of(1, 2, 3), [11, 12, 13])
    tree.insert(tokens_of(1, 2, 4), [11, 12, 14])
    assert tree.match(tokens_of(1, 2, 4)).pages == [11, 12, 14]
    assert tree.match(tokens_of(1, 2, 4)[:-1]).pages == [11, 12]
    assert tree.match(tokens_of(1, 2, 4), max_tokens=3 * P - 1).num_tokens == 2 * P
    assert tree.match(pack_ids(tokens_of(1, 2, 3, 9))).pages == [11, 12, 13]
    assert tree.match(tokens_of(2)).node is tree.root
    assert tree.match([]).pages == []
    assert tree.total_pages == 4
    tree.check()


def test_extra_keys_never_share():
    tree = RadixTree(P)
    tree.insert(tokens_of(1, 2), [1, 2])
    tree.insert(tokens_of(1, 2), [3, 4], extra_key="lora")
    assert tree.match(tokens_of(1, 2)).pages == [1, 2]
    assert tree.match(tokens_of(1, 2), "lora").pages == [3, 4]
    assert tree.match(tokens_of(1, 2), "other").pages == []
    tree.check()


def test_insert_reports_pages_that_the_tree_has_already():
    tree = RadixTree(P)
    tree.insert(tokens_of(1, 2, 3), [1, 2, 3])
    insert = tree.insert(tokens_of(1, 2, 5), [1, 7, 8])
    assert insert.duplicates == [(1, 7, 2)]
    assert insert.node.num_pages == 3
    assert tree.match(tokens_of(1, 2, 5)).pages == [1, 2, 8]
    tree.check()


def test_insert_continues_after_a_node():
    tree = RadixTree(P)
    node = tree.insert(tokens_of(1, 2), [1, 2], "k").node
    tree.lock(node)
    tree.insert(tokens_of(1, 9), [1, 9], "k")  # splits what is locked
    longer = tree.insert(tokens_of(3), [3], "k", after=node)
    assert longer.node.num_pages == 3
    assert tree.insert(tokens_of(3, 4), [5, 6], "k", after=node).duplicates == [(0, 5, 3)]
    assert tree.match(tokens_of(1, 2, 3, 4), "k").pages == [1, 2, 3, 6]
    stored = [page for event in tree.stored() for page in event.hashes]
    assert set(stored) == set(page_hashes(tokens_of(1, 2, 3, 4), P, "k") + page_hashes(tokens_of(1, 9), P, "k"))
    tree.check()


def test_short_tokens_are_refused():
    with pytest.raises(ValueError, match="do not fill"):
        RadixTree(P).insert(tokens_of(1, 2)[:-1], [1, 2])


def test_eviction_takes_the_least_recently_used_leaf_from_its_tail():
    tree = RadixTree(P)
    tree.insert(tokens_of(1, 2), [1, 2])
    tree.insert(tokens_of(3, 4, 5), [3, 4, 5])
    tree.insert(tokens_of(1, 6), [1, 6])
    tree.match(tokens_of(3, 4, 5))
    assert tree.evict(1) == [2]
    assert tree.evict(3) == [6, 1, 5]
    assert tree.match(tokens_of(3, 4, 5)).pages == [3, 4]
    tree.check()


def test_locks_keep_the_path_and_count():
    tree = RadixTree(P)
    node = tree.insert(tokens_of(1, 2, 3), [1, 2, 3]).node
    tree.lock(node)
    tree.lock(node)
    upper = tree.match(tokens_of(1, 2)).node  # a split below the holder of the lock
    tree.lock(upper)
    tree.insert(tokens_of(1, 2, 3, 4), [1, 2, 3, 4])
    assert (tree.locked_pages, tree.evictable_pages) == (3, 1)
    assert tree.evict(10) == [4]
    tree.unlock(node)
    assert tree.evict(10) == []
    tree.unlock(node)
    assert tree.evict(10) == [3]
    tree.unlock(upper)
    assert sorted(tree.evict(10)) == [1, 2]
    with pytest.raises(ValueError):
        tree.unlock(upper)
    tree.check()


def test_clear_spares_what_is_locked():
    events = []
    tree = RadixTree(P, events.append)
    node = tree.insert(tokens_of(1), [1]).node
    tree.insert(tokens_of(1, 2), [1, 2])
    tree.lock(node)
    assert tree.clear() == [2]
    assert isinstance(events[-1], PagesRemoved)
    tree.unlock(node)
    assert tree.clear() == [1] and tree.total_pages == 0
    assert isinstance(events[-1], CacheCleared)
    assert tree.match(tokens_of(1)).pages == []
    tree.check()


@pytest.mark.parametrize("known", [0, 1, 3, 5])
def test_hashes_from_the_ingress_are_used_and_continued(known):
    tokens = tokens_of(1, 2, 3, 4, 5)
    hashes = page_hashes(tokens, P)
    events = []
    tree = RadixTree(P, events.append)
    tree.insert(tokens[: 2 * P], [1, 2])
    tree.insert(tokens[: 4 * P], [1, 2, 3, 4], hashes=hashes[:known])
    assert events == [PagesStored(0, hashes[:2]), PagesStored(hashes[1], hashes[2:4])]


def test_neither_torch_nor_ray_is_imported():
    code = "import sys, raysgl.cache, raysgl.routing; print([m for m in ('torch', 'ray') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"


def test_long_nodes_are_compared_page_by_page_where_they_part():
    tree = RadixTree(P)
    pool = PagePool(1000)
    tokens = list(range(100 * P))
    tree.insert(tokens, pages := pool.allocate(100))
    for differ in (0, 1, P, 37 * P + 2, 99 * P, 100 * P - 1):
        other = tokens.copy()
        other[differ] = -1
        assert tree.match(other).pages == pages[: differ // P]
    tree.check()
