"""The queue of sequences that wait for admission, and the order in which they are tried."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from raysgl.engine.sequence import Sequence

LPM_LIMIT = 128
"""Longer queues are served first come, first served: matching every prompt each step would cost too much (SGLang's limit)."""
MAX_OVERTAKEN = 64
"""A sequence that others have overtaken so often goes first, so that lpm starves nobody."""
SCAN_LIMIT = 256
"""Sequences tried in one pass, where some are skipped because they wait for another's prefix."""

PRIORITY_S = 10.0
"""A point of priority is worth so many seconds of having waited. Nobody starves: in the end, who came long enough before others goes first."""
MOST_POINTS = 360
"""Priorities beyond are no greater: an hour is for ever here."""


def turn_of(came_at: float, priority: int) -> float:
    """Sequences are served in the order of their turns, in seconds."""
    return came_at - PRIORITY_S * max(-MOST_POINTS, min(priority, MOST_POINTS))


class WaitingQueue:
    """`fcfs`: in the order of turns. `lpm`: higher priority first, then the longest cached prefix."""

    def __init__(self, policy: str = "fcfs"):
        self._policy = policy
        self._items: dict[Sequence, int] = {}  # -> tokens when it was put here; in order unless not _sorted
        self._sorted = True
        self._last = (0.0, 0)  # place of the last item, while they are in order
        self.tokens = 0

    def __len__(self) -> int:
        return len(self._items)

    def add(self, seq: Sequence) -> None:
        """A new arrival."""
        if self._items and _place(seq) < self._last:
            self._sorted = False
        else:
            self._last = _place(seq)
        self._put(seq)

    def put_back(self, seq: Sequence) -> None:
        """A retracted sequence returns to its place, before all whose turn is later."""
        self._put(seq)
        self._sorted = False

    def _put(self, seq: Sequence) -> None:
        self._items[seq] = len(seq.tokens)
        self.tokens += len(seq.tokens)

    def remove(self, seq: Sequence) -> None:
        """It was admitted, aborted, or finished while waiting."""
        self.tokens -= self._items.pop(seq)

    def first(self) -> Sequence | None:
        """The one whose turn it is."""
        self._sort()
        return next(iter(self._items), None)

    def ahead(self, turn: float) -> tuple[int, int]:
        """How many sequences, and tokens of them, have their turn before this one."""
        if self._sorted and turn >= self._last[0]:
            return len(self._items), self.tokens
        tokens = [count for seq, count in self._items.items() if seq.turn <= turn]
        return len(tokens), sum(tokens)

    def last_first(self) -> list[Sequence]:
        """All, in the reverse order of their turns."""
        return sorted(self._items, key=_place, reverse=True)

    def begun(self) -> list[Sequence]:
        """Those that have been retracted, in the order of their turns."""
        self._sort()
        return [seq for seq in self._items if seq.retractions]

    def candidates(self, cached_tokens: Callable[[Sequence], int]) -> Iterator[Sequence]:
        """Sequences in the order to try them; the caller may remove the one it was given."""
        self._sort()
        if self._policy == "lpm" and 1 < len(self._items) <= LPM_LIMIT:
            yield from self._by_prefix(cached_tokens)
        else:
            yield from [seq for seq, _ in zip(self._items, range(SCAN_LIMIT))]

    def _sort(self) -> None:
        if not self._sorted and self._items:
            self._items = dict(sorted(self._items.items(), key=lambda item: _place(item[0])))
            self._last = _place(next(reversed(self._items)))
            self._sorted = True

    def _by_prefix(self, cached_tokens: Callable[[Sequence], int]) -> Iterator[Sequence]:
        def rank(seq: Sequence) -> tuple:
            late = seq.overtaken >= MAX_OVERTAKEN
            return (not late, *_place(seq)) if late else (True, -seq.priority, -cached_tokens(seq), *_place(seq))

        order = sorted(self._items, key=rank)
        for seq in order:
            yield seq
            if seq not in self._items:  # admitted: whoever came before it and still waits was overtaken
                for other in self._items:
                    if other.arrival < seq.arrival:
                        other.overtaken += 1


def _place(seq: Sequence) -> tuple[float, int]:
    return seq.turn, seq.arrival
