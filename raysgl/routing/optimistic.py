"""Pages that a replica does not have yet, but will: those of requests just sent there.

Between a decision and the KV events that confirm it, the next request with the same prefix should already be drawn to the same
replica. An entry ends when an event confirms it, some time after its request's first token (events must have come by then), after
a longest time if no token comes, or with its replica.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence


class OptimisticPages:
    """Page hash -> replicas that are about to cache it, until when. Times are of one monotonic clock, in seconds."""

    def __init__(self, longest_s: float = 60.0, grace_s: float = 2.0):
        self._longest = longest_s
        self._grace = grace_s
        self._until: dict[int, dict[str, float]] = {}
        # (when to look, replica, pages); each in order of time, since its delay is constant.
        self._long: deque[tuple[float, str, Sequence[int]]] = deque()
        self._short: deque[tuple[float, str, Sequence[int]]] = deque()

    def __len__(self) -> int:
        return len(self._until)

    def add(self, replica: str, hashes: Sequence[int], now: float) -> None:
        """A request that will compute these pages was sent to the replica."""
        self._set(self._long, now + self._longest, replica, hashes)

    def settle(self, replica: str, hashes: Sequence[int], now: float) -> None:
        """They have been computed, or never will be: what no event confirms within the grace time is dropped."""
        waiting = [page for page in hashes if replica in self._until.get(page, ())]
        self._set(self._short, now + self._grace, replica, waiting)

    def confirm(self, replica: str, hashes: Sequence[int]) -> None:
        """KV events say that these are cached (or were, and are gone again)."""
        if not self._until:
            return
        pages = self._until
        for page in hashes:
            if page in pages:
                self._drop(page, replica)

    def drop_replica(self, replica: str) -> None:
        """Forget all entries of a replica."""
        for page in [page for page, until in self._until.items() if replica in until]:
            self._drop(page, replica)

    def expire(self, now: float) -> None:
        """Drop what has had its time."""
        for queue in (self._short, self._long):
            while queue and queue[0][0] <= now:
                _, replica, hashes = queue.popleft()
                for page in hashes:
                    if self._until.get(page, {}).get(replica, now + 1) <= now:
                        self._drop(page, replica)

    def extend(
        self, hashes: Sequence[int], runs: Sequence[tuple[int, int]], bit_of: Callable[[str], int]
    ) -> list[tuple[str, int, int]]:
        """Runs of `PrefixIndex.runs` that go on over pages on their way: (replica, cached pages, those and the ones to come)."""
        result: list[tuple[str, int, int]] = []
        until = self._until
        if not until or not hashes:
            return result
        count = len(hashes)
        seen = 0
        for mask, start in runs:
            seen |= mask
            if start < count:
                for replica in until.get(hashes[start], ()):
                    if (bit := bit_of(replica)) >= 0 and mask >> bit & 1:
                        result.append((replica, start, self._end(hashes, start, replica)))
        for replica in until.get(hashes[0], ()):
            if (bit := bit_of(replica)) >= 0 and not seen >> bit & 1:
                result.append((replica, 0, self._end(hashes, 0, replica)))
        return result

    def _end(self, hashes: Sequence[int], start: int, replica: str) -> int:
        until = self._until
        for end in range(start + 1, len(hashes)):
            if replica not in until.get(hashes[end], ()):
                return end
        return len(hashes)

    def _set(self, queue: deque[tuple[float, str, Sequence[int]]], until: float, replica: str, hashes: Sequence[int]) -> None:
        if hashes:
            queue.append((until, replica, hashes))
            pages = self._until
            for page in hashes:
                if page in pages:
                    pages[page][replica] = until
                else:
                    pages[page] = {replica: until}

    def _drop(self, page: int, replica: str) -> None:
        until = self._until[page]
        if replica in until:
            if len(until) == 1:
                del self._until[page]
            else:
                del until[replica]
