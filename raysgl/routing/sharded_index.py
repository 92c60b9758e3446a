"""The index of one model in parts, each fed by a shard of the coordinator. Chains are told apart by their first page (`shard_of`)."""

from __future__ import annotations

from collections.abc import Sequence

from raysgl.cache.hashing import shard_of
from raysgl.messages import CacheMark, KVEvents
from raysgl.routing.index import Applied, PrefixIndex


class ShardedIndex:
    """What all parts know together. A replica is added to and dropped from each part on its own, as its shard says."""

    def __init__(self, shards: int = 1):
        self.parts = [PrefixIndex() for _ in range(shards)]

    def part_of(self, hashes: Sequence[int]) -> int:
        """The number of the part that knows a prompt's prefixes."""
        return shard_of(hashes[0], len(self.parts)) if hashes and len(self.parts) > 1 else 0

    def apply(self, batch: KVEvents) -> Applied:
        """See `PrefixIndex.apply`."""
        return self.parts[batch.shard].apply(batch)

    def match(self, hashes: Sequence[int]) -> dict[str, int]:
        """See `PrefixIndex.match`."""
        return self.parts[self.part_of(hashes)].match(hashes)

    def pages(self, replica: str) -> int:
        """How many pages a replica is known to have."""
        return sum(part.pages(replica) for part in self.parts)

    def holders(self, page: int) -> int:
        """See `PrefixIndex.holders`."""
        return sum(part.holders(page) for part in self.parts)

    def hashes_of(self, replica: str) -> set[int]:
        """All pages of a replica; for checks. Walks the index."""
        return set().union(*(part.hashes_of(replica) for part in self.parts))

    def marks(self) -> list[CacheMark]:
        """See `PrefixIndex.marks`."""
        return [mark for part in self.parts for mark in part.marks()]
