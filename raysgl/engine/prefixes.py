"""Which pages are being computed right now: whoever shares them had better wait than compute them again.

Two requests with a long common prefix that arrive together would both miss the cache. The second waits until the first has put
the common pages into the tree, and then finds them there.
"""

from __future__ import annotations

from collections import Counter

from raysgl.engine.sequence import Sequence

SHARED_PAGES = 2
"""Fewer common pages are not worth waiting for (SGLang: 32 tokens)."""


class PrefixesBeingComputed:
    """Hashes of the pages that running prefills have still to compute. `Sequence.computing` is written here alone."""

    def __init__(self) -> None:
        self._count: Counter[int] = Counter()

    def __bool__(self) -> bool:
        return bool(self._count)

    def includes(self, seq: Sequence, matched_pages: int) -> bool:
        """Whether somebody computes at least `SHARED_PAGES` pages that the sequence needs after those it has found."""
        last = matched_pages + SHARED_PAGES - 1
        return last < len(seq.page_hashes) and seq.page_hashes[last] in self._count

    def start(self, seq: Sequence, matched_pages: int) -> None:
        """It will compute all its pages but the first `matched_pages`."""
        seq.computing = seq.page_hashes[matched_pages:]
        self._count.update(seq.computing)

    def computed(self, seq: Sequence, pages: int) -> None:
        """Its first pages are in the tree."""
        self._drop(seq, len(seq.page_hashes) - pages)

    def stop(self, seq: Sequence) -> None:
        """It computes no more, whether it is through or not."""
        self._drop(seq, 0)

    def _drop(self, seq: Sequence, keep: int) -> None:
        done = max(0, len(seq.computing) - max(0, keep))
        for page_hash in seq.computing[:done]:
            self._count[page_hash] -= 1
            if not self._count[page_hash]:
                del self._count[page_hash]
        del seq.computing[:done]
