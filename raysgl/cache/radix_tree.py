"""Which prefixes are in the KV pool: a tree over token ids whose edges are runs of whole pages.

Who owns a page: the pool (free), a sequence (in use, its own), or this tree (cached). `insert` moves pages from the sequence to
the tree, `evict` moves them from the tree to the caller, who gives them to the pool. A lock keeps the pages from the root to
a node from being evicted while a sequence reads them:

    |<-------------- pages of a running sequence ------------->|
    |<--- cached: owned by the tree, locked --->|<--- its own --->|
    0                                     node.num_pages

The tree compares tokens, never hashes. Hashes are kept only to tell the global index what is cached.

Eviction order is exact LRU and costs O(1) a leaf. `_lru` holds the unlocked nodes, least recently used first, and a touched
path is moved to its end children first. So every node comes after all its descendants, and the first node is always a leaf.
"""

from __future__ import annotations

from array import array
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from raysgl.cache.hashing import ID_BYTES, Tokens, extend_hashes, pack, root_hash
from raysgl.messages import CacheCleared, KVEvent, PagesRemoved, PagesStored


class Node:
    """A run of pages below `parent`. A node that is locked stays valid; an unlocked one until the next `evict` or `clear`.

    key: the run's packed token ids. pages, hashes: one for each page of the run. num_pages: from the root to its end.
    label: its key in `parent.children`: the packed first page, below the root together with the extra key.
    hit: the period in which a request last found it (0: none has); no later than its parent's.
    """

    __slots__ = ("children", "hashes", "hit", "key", "label", "locks", "num_pages", "pages", "parent")

    def __init__(
        self, parent: Node | None, label: object, key: bytearray, pages: list[int], hashes: array[int], num_pages: int
    ):
        self.parent = parent
        self.children: dict[object, Node] = {}
        self.label = label
        self.key = key
        self.pages = pages
        self.hashes = hashes
        self.num_pages = num_pages
        self.locks = 0
        self.hit = 0


@dataclass(slots=True)
class Match:
    """The longest cached prefix: its pages, the node where it ends (the root when empty), and its tokens."""

    pages: list[int]
    node: Node
    num_tokens: int


@dataclass(slots=True)
class Insert:
    """What `insert` did. `node` ends where the inserted pages end.

    duplicates: (index into the inserted pages, the caller's page, the tree's page) where the tree had the same tokens in
    another page: the caller should use the tree's page (after locking `node`) and free its own.
    """

    node: Node
    duplicates: list[tuple[int, int, int]]


class RadixTree:
    """Not thread safe: one owner. `on_event` is called with each change of what is cached, in order."""

    def __init__(self, page_size: int, on_event: Callable[[KVEvent], None] | None = None):
        self.page_size = page_size
        self.root = Node(None, None, bytearray(), [], array("Q"), 0)
        self.total_pages = 0
        self.locked_pages = 0
        self._page_bytes = page_size * ID_BYTES
        self._emit = on_event
        self._lru: OrderedDict[Node, None] = OrderedDict()
        self.period = 1
        """Counts up from outside, every so many seconds, so that `hot_pages` knows how long ago a hit was."""
        self._hits: Counter[int] = Counter()
        """Period -> pages that were last hit in it."""

    @property
    def evictable_pages(self) -> int:
        """Pages that `evict` could free now."""
        return self.total_pages - self.locked_pages

    def match(self, tokens: Tokens, extra_key: str = "", max_tokens: int | None = None) -> Match:
        """The longest cached prefix of `tokens` in whole pages, of at most `max_tokens` tokens. Counts as a use.

        Lock the node before anything else can evict.
        """
        data = pack(tokens)
        limit = len(data) // self._page_bytes
        if max_tokens is not None:
            limit = min(limit, max_tokens // self.page_size)
        pages: list[int] = []
        node, _ = self._walk(self.root, data, limit, extra_key, pages)
        self._touch(node)
        return Match(pages, node, len(pages) * self.page_size)

    def insert(
        self,
        tokens: Tokens,
        pages: Sequence[int],
        extra_key: str = "",
        hashes: Sequence[int] | None = None,
        after: Node | None = None,
    ) -> Insert:
        """Cache `pages`, which hold the first len(pages) * page_size of `tokens`. Counts as a use.

        The tree takes over all pages that it does not report as duplicates. hashes: the pages' chain, where it is known; it
        may be shorter (or longer) than `pages`, missing ones are computed.
        after: tokens, pages, hashes and duplicates start where this node ends instead of at the root; it must be locked by
        the caller. So that caching a long prompt chunk by chunk costs no more than its tokens.
        """
        data = pack(tokens)
        count = len(pages)
        if len(data) < count * self._page_bytes:
            raise ValueError(f"{len(data) // ID_BYTES} tokens do not fill {count} pages of {self.page_size}")
        held: list[int] = []
        node, index = self._walk(after or self.root, data, count, extra_key, held)
        duplicates = []
        own = list(pages[:index])
        if held != own:
            duplicates = [(i, mine, theirs) for i, (mine, theirs) in enumerate(zip(own, held)) if mine != theirs]
        if index < count:
            node = self._grow(node, data[index * self._page_bytes : count * self._page_bytes], list(pages[index:]), extra_key,
                              list(hashes[index:count]) if hashes is not None else [])  # fmt: skip
        self._touch(node)
        return Insert(node, duplicates)

    def hit(self, node: Node) -> None:
        """A request has found the prefix that ends at this node, and uses it."""
        now = self.period
        while node is not self.root and node.hit != now:
            self._hits[node.hit] -= len(node.pages)
            self._hits[now] += len(node.pages)
            node.hit = now
            assert node.parent is not None
            node = node.parent

    def hot_pages(self, periods: int) -> int:
        """Pages that requests have found in the current period or the `periods` before it."""
        oldest = max(1, self.period - periods)
        for period in [period for period, count in self._hits.items() if period < oldest and not count]:
            del self._hits[period]
        return sum(self._hits[period] for period in range(oldest, self.period + 1))

    def lock(self, node: Node) -> None:
        """Keep the pages from the root to `node` until `unlock`. Locks count."""
        root = self.root
        while node is not root:
            if node.locks == 0:
                del self._lru[node]
                self.locked_pages += len(node.pages)
            node.locks += 1
            assert node.parent is not None, "locking a node that was evicted"
            node = node.parent

    def unlock(self, node: Node) -> None:
        """Take one lock back. Counts as a use. Raises ValueError when the node has none."""
        if node is not self.root and node.locks == 0:
            raise ValueError("unlock of a node that is not locked")
        root = self.root
        while node is not root:
            node.locks -= 1
            if node.locks == 0:
                self._lru[node] = None
                self.locked_pages -= len(node.pages)
            assert node.parent is not None
            node = node.parent

    def evict(self, num_pages: int) -> list[int]:
        """Drop up to `num_pages` unlocked pages, least recently used leaves first and each from its tail. Returns them."""
        freed: list[int] = []
        removed: list[int] = []
        while len(freed) < num_pages and self._lru:
            node = next(iter(self._lru))
            keep = max(0, len(node.pages) - (num_pages - len(freed)))
            freed += node.pages[keep:]
            removed += node.hashes[keep:]
            self._hits[node.hit] -= len(node.pages) - keep
            if keep:
                node.num_pages -= len(node.pages) - keep
                del node.pages[keep:], node.hashes[keep:], node.key[keep * self._page_bytes :]
            else:
                self._remove(node)
        self.total_pages -= len(freed)
        if removed and self._emit:
            self._emit(PagesRemoved(removed))
        return freed

    def clear(self) -> list[int]:
        """Drop every page that is not locked. Returns them."""
        if self.locked_pages:
            return self.evict(self.evictable_pages)
        freed = [page for node in self._lru for page in node.pages]
        for node in self._lru:
            node.parent = None
        self._lru.clear()
        self._hits.clear()
        self.root.children.clear()
        self.total_pages = 0
        if self._emit:
            self._emit(CacheCleared())
        return freed

    def nodes(self) -> Iterator[Node]:
        """All nodes but the root, parents before children."""
        stack = list(self.root.children.values())
        while stack:
            node = stack.pop()
            yield node
            stack.extend(node.children.values())

    def stored(self) -> Iterator[PagesStored]:
        """What is cached, as the events that would build it up from nothing."""
        for node in self.nodes():
            assert node.parent is not None
            yield PagesStored(self._last_hash(node.parent), node.hashes.tolist())

    def check(self) -> None:
        """Assert every invariant; for tests and idle moments. O(size)."""
        total = locked = 0
        seen: set[int] = set()
        for node in self.nodes():
            parent = node.parent
            assert parent is not None and parent.children[node.label] is node
            assert node.pages, "an empty node"
            assert len(node.pages) == len(node.hashes) == len(node.key) / self._page_bytes
            assert node.num_pages == parent.num_pages + len(node.pages)
            first = bytes(node.key[: self._page_bytes])
            assert first == (node.label[1] if isinstance(node.label, tuple) else node.label)
            assert isinstance(node.label, tuple) == (parent is self.root)
            assert (node.locks > 0) == (node not in self._lru), "the LRU order holds the unlocked nodes"
            assert parent is self.root or parent.locks >= sum(child.locks for child in parent.children.values())
            assert seen.isdisjoint(node.pages), "a page is in the tree twice"
            seen.update(node.pages)
            total += len(node.pages)
            locked += len(node.pages) if node.locks else 0
        assert (total, locked) == (self.total_pages, self.locked_pages)
        hits: Counter[int] = Counter()
        for node in self.nodes():
            hits[node.hit] += len(node.pages)
        assert all(self._hits[period] == hits[period] for period in {*hits, *self._hits} if period)
        done: set[Node] = set()
        for node in self._lru:
            assert done.issuperset(node.children.values()), "a node is older than one of its children"
            done.add(node)
        assert len(done) == sum(1 for node in self.nodes() if not node.locks)

    def _walk(self, node: Node, data: bytes, limit: int, extra_key: str, pages: list[int]) -> tuple[Node, int]:
        """Follow `data` down from `node` for at most `limit` pages, splitting the last node where the match ends.

        Appends the pages found. Returns the node where the match ends and how many pages matched.
        """
        step = self._page_bytes
        root = self.root
        index = 0
        while index < limit:
            start = index * step
            first = data[start : start + step]
            child = node.children.get((extra_key, first) if node is root else first)
            if child is None:
                break
            size = len(child.pages)
            if size <= limit - index and data.startswith(child.key, start):
                node = child
                pages += child.pages
                index += size
                continue
            same = self._common_pages(child.key, data, start, min(size, limit - index))
            node = self._split(child, same) if same < size else child
            pages += node.pages
            index += same
            break
        return node, index

    def _common_pages(self, key: bytearray, data: bytes, start: int, most: int) -> int:
        """How many whole pages of `key` `data` continues with at `start`: at least 1 (the child was found by it), at most `most`.

        Bisects, so that all comparing is done in bulk.
        """
        step = self._page_bytes
        low, high = 1, most
        with memoryview(key) as view:
            while low < high:
                middle = (low + high + 1) // 2
                with view[low * step : middle * step] as part:
                    same = data.startswith(part, start + low * step)
                if same:
                    low = middle
                else:
                    high = middle - 1
        return low

    def _split(self, node: Node, count: int) -> Node:
        """Move the first `count` pages of `node` to a new node above it, and return that. `node` stays the one that holders of
        locks know, and both keep its locks. The caller must touch the new node."""
        parent = node.parent
        assert parent is not None
        cut = count * self._page_bytes
        upper = Node(parent, node.label, node.key[:cut], node.pages[:count], node.hashes[:count], parent.num_pages + count)
        upper.locks, upper.hit = node.locks, node.hit
        parent.children[node.label] = upper
        del node.key[:cut], node.pages[:count], node.hashes[:count]
        node.label = bytes(node.key[: self._page_bytes])
        node.parent = upper
        upper.children[node.label] = node
        return upper

    def _grow(self, parent: Node, data: bytes, pages: list[int], extra_key: str, hashes: list[int]) -> Node:
        """A new leaf below `parent`."""
        if len(hashes) < len(pages):
            last = hashes[-1] if hashes else self._last_hash(parent) or root_hash(extra_key)
            hashes += extend_hashes(last, data[len(hashes) * self._page_bytes :], self.page_size)
        first = data[: self._page_bytes]
        label = (extra_key, first) if parent is self.root else first
        node = Node(parent, label, bytearray(data), pages, array("Q", hashes), parent.num_pages + len(pages))
        parent.children[label] = node
        self._lru[node] = None
        self.total_pages += len(pages)
        if self._emit:
            self._emit(PagesStored(self._last_hash(parent), hashes))
        return node

    def _remove(self, leaf: Node) -> None:
        assert leaf.parent is not None and not leaf.children
        del leaf.parent.children[leaf.label], self._lru[leaf]
        leaf.parent = None

    def _last_hash(self, node: Node) -> int:
        """The hash that chains on from `node`; 0 at the root."""
        return node.hashes[-1] if node.hashes else 0

    def _touch(self, node: Node) -> None:
        """Make the path to `node` the most recently used, children first."""
        lru = self._lru
        root = self.root
        while node is not root:
            if node.locks == 0:
                lru[node] = None
                lru.move_to_end(node)
            assert node.parent is not None
            node = node.parent
