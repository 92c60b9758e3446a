"""What a replica's cache really holds, from a walk of its radix tree: to compare with what others think it holds."""

from __future__ import annotations

import functools
import operator
from array import array

from raysgl.cache.hashing import shard_of
from raysgl.engine.scheduler import Scheduler
from raysgl.messages import CacheMark, CacheReport


def cache_report(scheduler: Scheduler, replica: str, epoch: int, shards: int = 1, with_hashes: bool = False) -> CacheReport:
    """As of now; the marks' sequences are for whoever numbers the events. Of the thread that owns the scheduler. Nothing is taken from
    counters that could be wrong in the same way: pages are counted where they are. 20,000 cached pages take about 2 ms."""
    marks = [CacheMark(replica, epoch, shard, -1, 0, 0) for shard in range(shards)]
    hashes = [array("Q") for _ in range(shards)]
    for top in scheduler.tree.root.children.values():
        shard = shard_of(top.hashes[0], shards)
        mark, stack = marks[shard], [top]
        while stack:
            node = stack.pop()
            stack.extend(node.children.values())
            mark.pages += len(node.pages)
            mark.digest ^= functools.reduce(operator.xor, node.hashes)
            if with_hashes:
                hashes[shard] += node.hashes
    if with_hashes:
        for mark, held in zip(marks, hashes):
            mark.hashes = array("Q", sorted(held)).tobytes()
    in_use = sum(len(seq.pages) - seq.num_shared for seq in scheduler.running)
    return CacheReport(marks, scheduler.pool.available, in_use, scheduler.config.num_pages)
