"""The global prefix index: which replica has which page cached.

A page hash maps to a bit mask of replicas, so a page costs the same wherever and however often it is cached (about 130 bytes), and
`match` follows all replicas at once: one look-up and one AND a page.

The dict is cut into shards. When a replica leaves or clears its cache its bit is retired, which takes effect at once and costs
nothing; the bit is swept out of the masks a shard or more with each later batch, and then used again. So no call ever walks a
whole large index.
"""

from __future__ import annotations

from array import array
from collections import defaultdict
from collections.abc import Sequence
from enum import Enum

import numpy as np

from raysgl.messages import CacheCleared, CacheMark, KVEvents, PagesRemoved, PagesStored
from raysgl.routing.messages import IndexDump

SHARDS = 256
"""At 20 million pages a shard has 80,000, which take about 10 ms to sweep: the longest that a batch can be held up."""

STRIDE = 8
"""Pages of a prompt looked at together: 64 pages that are all cached take 8 look-ups, and where a run ends 8 more."""

SWEEP_PAGES = 2000
"""Pages swept with a batch, rounded up to shards: 0.2 ms."""


class Applied(Enum):
    """What became of a batch. For `UNKNOWN`, `DEAD`, `DUPLICATE` and `GAP` it was not applied."""

    OK = "ok"
    GAP = "gap"
    """Batches before it are missing: the replica must send a snapshot."""
    DUPLICATE = "duplicate"
    """An earlier sequence number than expected."""
    DEAD = "dead"
    """Of an epoch before the replica's current one."""
    UNKNOWN = "unknown"
    """Of a replica or an epoch that was not added."""


class _Member:
    """A replica in the index. bit: its power of two in the masks. sequence: of the batch expected next. synced: no gap.

    digests: for each shard, the hashes of its pages there XORed. mark: of the last batch that asked for one.
    """

    __slots__ = ("bit", "digests", "epoch", "mark", "pages", "sequence", "synced")

    def __init__(self, epoch: int, bit: int, sequence: int = 0, synced: bool = True):
        self.epoch = epoch
        self.bit = bit
        self.sequence = sequence
        self.synced = synced
        self.mark: CacheMark | None = None
        self.forget()

    def forget(self) -> None:
        """Nothing is cached."""
        self.pages = 0
        self.digests = [0] * SHARDS


class PrefixIndex:
    """The index of one model. Not thread safe."""

    def __init__(self) -> None:
        self.layout = 0
        """Counts changes of whose bit is which."""
        self._members: dict[str, _Member] = {}
        self._names: dict[int, str] = {}
        self._live = 0
        self._shards: list[dict[int, int]] = [{} for _ in range(SHARDS)]
        self._free_bits: list[int] = []
        self.num_bits = 0
        """Bits given out so far, in use or not."""
        # Retired bits wait for a sweep to begin, are swept from shard 0 to the last, and are then free.
        self._retired = 0
        self._sweeping = 0
        self._sweep_next = 0

    def __contains__(self, replica: str) -> bool:
        return replica in self._members

    def add(self, replica: str, epoch: int) -> None:
        """A replica begins this epoch, with nothing cached. What was known of it before is dropped."""
        self.drop(replica)
        self._members[replica] = member = _Member(epoch, 0)
        self._give_bit(replica, member)

    def drop(self, replica: str) -> None:
        """Forget a replica. Does nothing if it is unknown."""
        member = self._members.pop(replica, None)
        if member is not None:
            self._retire(member)

    def apply(self, batch: KVEvents) -> Applied:
        """Take a replica's events. A batch that begins with `CacheCleared` is applied whatever is missing before it."""
        member = self._members.get(batch.replica)
        if member is None or batch.epoch > member.epoch:
            return Applied.UNKNOWN
        if batch.epoch < member.epoch:
            return Applied.DEAD
        if batch.sequence < member.sequence:
            return Applied.DUPLICATE
        whole = bool(batch.events) and isinstance(batch.events[0], CacheCleared)
        if not whole and (batch.sequence > member.sequence or not member.synced):
            member.synced = False
            return Applied.GAP
        member.synced = True
        member.sequence = batch.sequence + 1
        for event in batch.events:
            if isinstance(event, PagesStored):
                self._store(member, event.hashes)
            elif isinstance(event, PagesRemoved):
                self._discard(member, event.hashes)
            elif member.pages:
                self._retire(member)
                self._give_bit(batch.replica, member)
        if batch.mark:
            member.mark = self._mark(batch, member)
        self._sweep()
        return Applied.OK

    def match(self, hashes: Sequence[int]) -> dict[str, int]:
        """How many leading pages of a prompt each replica has; replicas that have none are left out."""
        hits: dict[str, int] = {}
        for mask, pages in self.runs(hashes, stride=1):
            self._name(mask, pages, hits)
        return hits

    def runs(self, hashes: Sequence[int], stride: int = STRIDE) -> list[tuple[int, int]]:
        """`match` as (bits of replicas, their leading pages), shortest first; see `bit_of`.

        A radix tree holds a page only together with those before it, so where the last page of a stride is held by all that held the
        one before the stride, those between are too, and are not looked up. stride=1 looks at every page.
        """
        runs: list[tuple[int, int]] = []
        shards = self._shards
        # The first page apart: it tells who is in at all, and is no run's end for those that are not.
        if not hashes or not (mask := self._live & shards[hashes[0] & 255].get(hashes[0], 0)):
            return runs
        count = len(hashes)
        index = 1
        while index < count:
            if stride > 1 and index + stride <= count:
                last = hashes[index + stride - 1]
                held = shards[last & 255].get(last, 0)
                if held == mask or held & mask == mask:
                    index += stride
                    continue
            end = min(index + stride, count)
            for at in range(index, end):
                page = hashes[at]
                held = shards[page & 255].get(page, 0)
                if held != mask and (both := held & mask) != mask:
                    runs.append((mask ^ both, at))
                    mask = both
                    if not mask:
                        return runs
            index = end
        runs.append((mask, count))
        return runs

    def bit_of(self, replica: str) -> int:
        """The number of a replica's bit, -1 if it is unknown. It may be another one whenever `layout` has changed."""
        member = self._members.get(replica)
        return member.bit.bit_length() - 1 if member else -1

    def unsynced(self) -> list[tuple[str, int]]:
        """(replica, epoch) of those whose batches have a gap, and who must send a snapshot."""
        return [(name, member.epoch) for name, member in self._members.items() if not member.synced]

    def synced(self, replica: str) -> bool:
        """Whether a replica's batches have come without a gap."""
        return self._members[replica].synced

    def pages(self, replica: str) -> int:
        """How many pages a replica is known to have (0 for an unknown one)."""
        member = self._members.get(replica)
        return member.pages if member else 0

    def holders(self, page: int) -> int:
        """How many replicas have a page, and so all pages before it."""
        return (self._live & self._shards[page & 255].get(page, 0)).bit_count()

    def hashes_of(self, replica: str) -> set[int]:
        """All pages of a replica; for checks. Walks the index."""
        member = self._members.get(replica)
        bit = member.bit if member else 0
        return {page for shard in self._shards for page, mask in shard.items() if mask & bit}

    def marks(self) -> list[CacheMark]:
        """What was taken down of each replica when it last asked for it."""
        return [member.mark for member in self._members.values() if member.mark is not None]

    def wrong_masks(self, shard: int) -> set[str]:
        """Replicas whose pages in one of the `SHARDS` shards are not those that their events stored there: none, unless this class
        has a bug. For checks; walks the shard, which takes 10 ms of an index of 20 million pages."""
        sums: defaultdict[int, int] = defaultdict(int)
        for page, mask in self._shards[shard].items():
            sums[mask] ^= page
        wrong = set()
        for name, member in self._members.items():
            found = 0
            for mask, digest in sums.items():
                if mask & member.bit:
                    found ^= digest
            if found != member.digests[shard]:
                wrong.add(name)
        return wrong

    def dump(self) -> IndexDump:
        """Everything, for a mirror that starts. Walks the index."""
        order = list(self._members)
        bits = [self._members[name].bit for name in order]
        mask_bytes = max(1, (len(order) + 7) // 8)
        renumbered: dict[int, bytes] = {}  # masks repeat a lot
        hashes = []
        masks = []
        for shard in self._shards:
            for page, mask in shard.items():
                mask &= self._live
                if mask:
                    packed = renumbered.get(mask)
                    if packed is None:
                        value = sum(1 << i for i, bit in enumerate(bits) if mask & bit)
                        packed = renumbered[mask] = value.to_bytes(mask_bytes, "little")
                    hashes.append(page.to_bytes(8, "little"))
                    masks.append(packed)
        members = self._members
        replicas = [(name, members[name].epoch, members[name].sequence, members[name].synced) for name in order]
        return IndexDump(replicas, b"".join(hashes), b"".join(masks), mask_bytes)

    @classmethod
    def load(cls, dump: IndexDump) -> PrefixIndex:
        """The inverse of `dump`."""
        index = cls()
        members = []
        for name, epoch, sequence, synced in dump.replicas:
            index.add(name, epoch)
            member = index._members[name]
            member.sequence, member.synced = sequence, synced
            members.append(member)
        # `add` gave replica i bit i, so the masks need no renumbering.
        masks: dict[bytes, int] = {}
        width = dump.mask_bytes
        for i in range(len(dump.hashes) // 8):
            page = int.from_bytes(dump.hashes[i * 8 : i * 8 + 8], "little")
            packed = dump.masks[i * width : (i + 1) * width]
            mask = masks.get(packed)
            if mask is None:
                mask = masks[packed] = int.from_bytes(packed, "little")
            index._shards[page & 255][page] = mask
        pages = np.frombuffer(dump.hashes, dtype="<u8")
        packed_masks = np.frombuffer(dump.masks, dtype=np.uint8).reshape(-1, width)
        for i, member in enumerate(members):
            own = pages[(packed_masks[:, i // 8] >> (i % 8)) & 1 == 1]
            digests = np.zeros(SHARDS, dtype=np.uint64)
            np.bitwise_xor.at(digests, own % SHARDS, own)
            member.pages, member.digests = len(own), digests.tolist()
        return index

    # ------------------------------------------------------------------ masks

    def _store(self, member: _Member, hashes: list[int]) -> None:
        shards, bit, digests = self._shards, member.bit, member.digests
        for page in hashes:
            at = page & 255
            shard = shards[at]
            mask = shard.get(page, 0)
            if not mask & bit:
                shard[page] = mask | bit
                digests[at] ^= page
                member.pages += 1

    def _discard(self, member: _Member, hashes: list[int]) -> None:
        shards, bit, live, digests = self._shards, member.bit, self._live, member.digests
        for page in hashes:
            at = page & 255
            shard = shards[at]
            mask = shard.get(page, 0)
            if mask & bit:
                digests[at] ^= page
                member.pages -= 1
                mask = (mask ^ bit) & live
                if mask:
                    shard[page] = mask
                else:
                    del shard[page]

    def _mark(self, batch: KVEvents, member: _Member) -> CacheMark:
        digest = 0
        for part in member.digests:
            digest ^= part
        hashes = array("Q", sorted(self.hashes_of(batch.replica))).tobytes() if batch.mark == 2 else None
        return CacheMark(batch.replica, batch.epoch, batch.shard, batch.sequence, member.pages, digest, hashes)

    def _name(self, mask: int, pages: int, hits: dict[str, int]) -> None:
        names = self._names
        while mask:
            low = mask & -mask
            hits[names[low]] = pages
            mask ^= low

    # ------------------------------------------------------------------ bits

    def _give_bit(self, replica: str, member: _Member) -> None:
        if self._free_bits:
            member.bit = self._free_bits.pop()
        else:
            member.bit = 1 << self.num_bits
            self.num_bits += 1
        self._names[member.bit] = replica
        self.layout += 1
        self._live |= member.bit

    def _retire(self, member: _Member) -> None:
        self._live &= ~member.bit
        del self._names[member.bit]
        if member.pages:
            self._retired |= member.bit
        else:
            self._free_bits.append(member.bit)
        member.forget()

    def _sweep(self) -> None:
        """Take retired bits out of some more shards."""
        if not self._sweeping:
            if not self._retired:
                return
            self._sweeping, self._retired = self._retired, 0
        keep = ~self._sweeping
        budget = SWEEP_PAGES
        while budget > 0 and self._sweep_next < SHARDS:
            shard = self._shards[self._sweep_next]
            budget -= len(shard)
            self._shards[self._sweep_next] = {page: mask & keep for page, mask in shard.items() if mask & keep}
            self._sweep_next += 1
        if self._sweep_next == SHARDS:
            self._free_bits += [1 << i for i in range(self.num_bits) if self._sweeping >> i & 1]
            self._sweeping = self._sweep_next = 0
