"""Which decoding sequences share a long prefix: attention can then read its pages once for all of them (cascade attention).

The radix tree knows: sequences whose locked nodes lie below one node have that node's pages in common, page by page. Of nested
prefixes the one is taken that saves the most reads.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from raysgl.cache.radix_tree import Node
from raysgl.engine.sequence import Sequence

MIN_SHARED_TOKENS = 256
"""A shorter prefix is not worth an extra pass over the queries."""
MIN_SAVED = 0.15
"""Share of the step's KV reads that must be saved; below it the merging of partial results costs more than it saves."""


@dataclass
class Groups:
    """rows: for each decode row its group, -1 for none. pages: for each group how many pages its rows share."""

    rows: list[int]
    pages: list[int]


@dataclass(slots=True)
class _Place:
    """A tree node that rows lie below."""

    node: Node
    rows: list[int] = field(default_factory=list)
    below: list[_Place] = field(default_factory=list)

    def saved(self) -> int:
        """Page reads saved each step if its rows shared its pages."""
        return (len(self.rows) - 1) * self.node.num_pages


class GroupFinder:
    """Remembers the groups of the rows it was asked about last. Nodes of decoding sequences don't change, so the groups hold."""

    def __init__(self, page_size: int):
        self._page_size = page_size
        self._rows: list[Sequence] = []
        self._groups: Groups | None = None

    def groups(self, rows: list[Sequence]) -> Groups | None:
        """See `find_groups`."""
        if rows != self._rows:
            self._rows, self._groups = rows, find_groups(rows, self._page_size)
        return self._groups


def find_groups(sequences: list[Sequence], page_size: int) -> Groups | None:
    """Groups of the decode rows `sequences`, or None where cascade attention would not pay."""
    places: dict[Node, _Place] = {}
    tops: list[_Place] = []
    for row, seq in enumerate(sequences):
        node, child = seq.node, None
        while node is not None and node.parent is not None:  # up to the root, which has no pages
            place = places.get(node)
            new = place is None
            if place is None:
                place = places[node] = _Place(node)
                if node.parent.parent is None:
                    tops.append(place)
            place.rows.append(row)
            if child is not None:
                place.below.append(child)
            child = place if new else None
            node = node.parent
    groups = Groups([-1] * len(sequences), [])
    saved = sum(_best(top, page_size, groups) for top in tops)
    total = sum(seq.num_computed for seq in sequences)
    return groups if saved * page_size >= MIN_SAVED * total and groups.pages else None


def _best(place: _Place, page_size: int, groups: Groups) -> int:
    """Group the place's rows in the way that saves most; returns how much. Deeper groups overwrite none of other branches."""
    while len(place.below) == 1 and len(place.below[0].rows) == len(place.rows):
        place = place.below[0]  # the same rows share more
    mine = place.saved() if place.node.num_pages * page_size >= MIN_SHARED_TOKENS else 0
    trial = Groups(groups.rows, list(groups.pages))
    before = [groups.rows[row] for row in place.rows]
    deeper = sum(_best(child, page_size, trial) for child in place.below)
    if mine >= deeper:
        for row, old in zip(place.rows, before, strict=True):
            groups.rows[row] = old
        if mine > 0:
            for row in place.rows:
                groups.rows[row] = len(groups.pages)
            groups.pages.append(place.node.num_pages)
        return mine
    groups.pages = trial.pages
    return deeper
