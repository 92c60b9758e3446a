"""A replica's prefix cache: what `raysgl.cache.RadixTree` would hold, kept per edge of the workload's prefix tree.

The order of eviction is the tree's: least recently used leaf first, each from its tail. As there, an unlocked edge comes after all
its descendants in `_lru`, because a touched path is moved to the end children first.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence

from raysgl.bench.routing.prefixes import Edge
from raysgl.messages import KVEvent, PagesRemoved, PagesStored


class EdgeCache:
    """held: cached leading pages of each edge (absent: none). locks: of edges in use. `on_event` hears of changes, in order."""

    def __init__(self, on_event: Callable[[KVEvent], None] | None = None):
        self.held: dict[Edge, int] = {}
        self.total_pages = 0
        self.locked_pages = 0
        self._locks: dict[Edge, int] = {}
        self._lru: OrderedDict[Edge, None] = OrderedDict()
        self._emit = on_event

    @property
    def evictable_pages(self) -> int:
        """Pages that `evict` could free now."""
        return self.total_pages - self.locked_pages

    def peek(self, path: Sequence[Edge], limit: int) -> int:
        """How many leading pages of a path are cached, of at most `limit`. Not a use."""
        held = self.held
        pages = 0
        for edge in path:
            have = held.get(edge, 0)
            pages += have
            if have < edge.size:
                break
        return min(pages, limit)

    def match(self, path: Sequence[Edge], limit: int) -> int:
        """As `peek`; counts as a use."""
        pages = self.peek(path, limit)
        self._touch(path, pages)
        return pages

    def insert(self, path: Sequence[Edge], pages: int) -> int:
        """Cache the first `pages` of a path. Counts as a use. Returns how many were new."""
        new = 0
        for edge in path:
            want = min(edge.size, pages - edge.depth)
            if want <= 0:
                break
            have = self.held.get(edge, 0)
            if have < want:
                new += want - have
                self.held[edge] = want
                if edge in self._locks:
                    self.locked_pages += want - have
                else:
                    self._lru[edge] = None
                if self._emit:
                    parent = edge.hashes[have - 1] if have else edge.parent.last_hash if edge.parent else 0
                    self._emit(PagesStored(parent, edge.hashes[have:want]))
        self.total_pages += new
        self._touch(path, pages)
        return new

    def lock(self, path: Sequence[Edge], pages: int, start: int = 0) -> None:
        """Keep the edges of a path that begin at page `start` or later and before `pages` until `unlock`. Locks count."""
        for edge in path:
            if edge.depth >= pages:
                break
            if edge.depth < start:
                continue
            count = self._locks.get(edge, 0)
            if not count:
                del self._lru[edge]
                self.locked_pages += self.held[edge]
            self._locks[edge] = count + 1

    def unlock(self, path: Sequence[Edge], pages: int) -> None:
        """Take one lock of each edge back, deepest first. Counts as a use."""
        for edge in reversed(path):
            if edge.depth >= pages:
                continue
            count = self._locks[edge] - 1
            if count:
                self._locks[edge] = count
            else:
                del self._locks[edge]
                self._lru[edge] = None
                self.locked_pages -= self.held[edge]

    def evict(self, num_pages: int) -> int:
        """Drop up to `num_pages` unlocked pages. Returns how many."""
        freed = 0
        removed: list[int] = []
        while freed < num_pages and self._lru:
            edge = next(iter(self._lru))
            have = self.held[edge]
            keep = max(0, have - (num_pages - freed))
            freed += have - keep
            if self._emit:
                removed += edge.hashes[keep:have]
            if keep:
                self.held[edge] = keep
            else:
                del self.held[edge], self._lru[edge]
        self.total_pages -= freed
        if removed and self._emit:
            self._emit(PagesRemoved(removed))
        return freed

    def _touch(self, path: Sequence[Edge], pages: int) -> None:
        lru = self._lru
        for edge in reversed(path):
            if edge.depth < pages and edge in lru:
                lru.move_to_end(edge)
