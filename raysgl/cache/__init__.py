"""KV memory as bookkeeping: page hashes, page pool, radix tree, cache events.

Pure Python over token ids and page numbers; imports neither torch nor ray. Used by `raysgl.engine`; the ingress and the
routing code use `hashing` alone.
"""

from raysgl.cache.events import EventLog
from raysgl.cache.hashing import extend_hashes, page_hashes, root_hash
from raysgl.cache.page_pool import OutOfPages, PagePool
from raysgl.cache.radix_tree import Insert, Match, Node, RadixTree
from raysgl.cache.sharded_events import ShardedEvents

__all__ = [
    "EventLog",
    "Insert",
    "Match",
    "Node",
    "OutOfPages",
    "PagePool",
    "RadixTree",
    "ShardedEvents",
    "extend_hashes",
    "page_hashes",
    "root_hash",
]
