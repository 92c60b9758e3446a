"""Which pages a sequence has: found in the radix tree, taken from the pool, shared with others, given back. No torch, no Ray.

Invariant (`check`): free pages + pages in the tree + pages owned by running sequences = pool.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from raysgl.cache.page_pool import PagePool
from raysgl.cache.radix_tree import Match, RadixTree
from raysgl.engine.prefixes import PrefixesBeingComputed
from raysgl.engine.sequence import Sequence
from raysgl.messages import KVEvent


class KVPages:
    """Used by the scheduler alone. caching: whether what was computed is kept for others."""

    def __init__(self, num_pages: int, page_size: int, caching: bool, on_event: Callable[[KVEvent], None] | None = None):
        self.pool = PagePool(num_pages)
        self.tree = RadixTree(page_size, on_event=on_event)
        self.computing = PrefixesBeingComputed()
        self._num_pages, self._page_size, self._caching = num_pages, page_size, caching
        self._written: list[int] = []  # nobody owns them any more, but the step being planned still writes them

    def pages_for(self, tokens: int) -> int:
        return -(-tokens // self._page_size)

    @property
    def available(self) -> int:
        """Pages that are free or can be evicted."""
        return self.pool.available + self.tree.evictable_pages

    def make_room(self, pages: int) -> bool:
        """Evict until so many pages are free."""
        missing = pages - self.pool.available
        if missing > self.tree.evictable_pages:
            return False
        if missing > 0:
            self.pool.free(self.tree.evict(missing))
        return True

    def match(self, seq: Sequence) -> Match:
        """What is cached of its known tokens, the last of which is always computed."""
        if not self._caching:
            return self.tree.match([], seq.extra_key)
        most = seq.logprobs_start if seq.wants_prompt_logprobs else len(seq.tokens) - 1
        return self.tree.match(seq.tokens, seq.extra_key, max_tokens=most)

    def waits_for_prefix(self, seq: Sequence, matched_pages: int) -> bool:
        """Whether a running prefill is computing pages that this sequence could share: better to wait than to compute twice."""
        return self._caching and self.computing.includes(seq, matched_pages) and not seq.wants_prompt_logprobs

    def take(self, seq: Sequence, match: Match) -> None:
        """It starts to run, with what was found (locked by the caller) and as many pages more as its tokens need."""
        own = self.pool.allocate(self.pages_for(len(seq.tokens)) - len(match.pages))
        seq.node = match.node
        seq.pages = match.pages + own
        seq.num_shared = len(match.pages)
        seq.num_computed = match.num_tokens
        seq.table_updates = list(enumerate(seq.pages))
        if self._caching:
            self.computing.start(seq, len(match.pages))
        self.tree.hit(match.node)

    def add_page(self, seq: Sequence) -> None:
        """One page more; there is room."""
        (page,) = self.pool.allocate(1)
        seq.table_updates.append((len(seq.pages), page))
        seq.pages.append(page)

    def computed(self, seq: Sequence) -> None:
        """The step being planned computes some of its tokens: others may share them from the next step on."""
        self._written += self._share(seq)

    def planned(self) -> None:
        """The step is planned. What it writes in vain may go to the next one: steps run in launch order."""
        self.pool.free(self._written)
        self._written = []

    def release(self, seq: Sequence) -> None:
        """It stops to run; what was computed stays in the tree, evictable."""
        self.pool.free(self._share(seq))
        assert seq.node is not None, "a running sequence has a place in the tree"
        self.computing.stop(seq)
        self.pool.free(seq.pages[seq.num_shared :])
        self.tree.unlock(seq.node)
        seq.pages, seq.num_shared, seq.node = [], 0, None
        seq.num_computed, seq.table_updates = 0, []

    def _share(self, seq: Sequence) -> list[int]:
        """Put the full pages computed so far into the tree, and use the tree's where it has them already. Returns its own pages
        that are of no use then."""
        size, shared = self._page_size, seq.num_shared
        full = min(seq.num_computed, len(seq.tokens)) // size
        if not self._caching or full <= shared:
            return []
        assert seq.node is not None, "a running sequence has a place in the tree"
        new = seq.tokens[shared * size : full * size]
        inserted = self.tree.insert(
            new, seq.pages[shared:full], seq.extra_key, hashes=seq.page_hashes[shared:full], after=seq.node
        )
        self.tree.lock(inserted.node)
        self.tree.unlock(seq.node)
        for index, _, cached in inserted.duplicates:
            seq.pages[shared + index] = cached
            seq.table_updates.append((shared + index, cached))
        seq.node = inserted.node
        seq.num_shared = full
        self.computing.computed(seq, full)
        return [own for _, own, _ in inserted.duplicates]

    def check(self, running: Iterable[Sequence]) -> None:
        """Raise AssertionError unless every page is accounted for exactly once."""
        self.tree.check()
        owned = [page for seq in running for page in seq.pages[seq.num_shared :]]
        assert len(set(owned)) == len(owned), "a page belongs to two sequences"
        total = self.pool.available + self.tree.total_pages + len(owned)
        assert total == self._num_pages, (
            f"{self.pool.available} free + {self.tree.total_pages} cached + {len(owned)} in use != {self._num_pages} pages"
        )
        if not running:
            assert self.tree.locked_pages == 0, f"{self.tree.locked_pages} pages are locked by nobody"
            assert not self.computing, "prefixes are awaited that nobody computes"
