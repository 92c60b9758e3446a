"""The chain of 64-bit page hashes that names a cached prefix everywhere in the cluster.

hash of a page = XXH3-64(the page's token ids as little-endian int32, seed = hash of the page before it). The seed of a
prompt's first page is `root_hash(extra_key)`, so chains with different extra keys (LoRA, cache salt, image digest) never
meet. It is the same on every host and in every process. It is not cryptographic: a collision can misroute a request, never
corrupt one, since the radix tree compares tokens.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Sequence

from xxhash import xxh3_64_intdigest

ID_BYTES = 4
"""Bytes of a packed token id."""

Tokens = Sequence[int] | bytes
"""Token ids: a sequence of ints, or the bytes that `raysgl.messages.pack_ids` makes of one (quicker)."""


def pack(tokens: Tokens) -> bytes:
    """Token ids as little-endian int32 bytes; bytes are taken to be packed already. OverflowError beyond 32 bits."""
    if isinstance(tokens, bytes):
        return tokens
    ids = tokens if isinstance(tokens, array) and tokens.typecode == "i" else array("i", tokens)
    if sys.byteorder == "big":
        ids = ids[:]
        ids.byteswap()
    return ids.tobytes()


def root_hash(extra_key: str = "") -> int:
    """What a chain with this extra key starts from: 0 for none."""
    return xxh3_64_intdigest(extra_key.encode()) or 1 if extra_key else 0


def shard_of(first_hash: int, shards: int) -> int:
    """Which of so many shards of the coordinator a chain belongs to, by its first page. Of the upper bits, since the lower ones spread
    pages within an index."""
    return (first_hash >> 32) % shards


def page_hashes(token_ids: Tokens, page_size: int, extra_key: str = "") -> list[int]:
    """One hash for each full page of a prompt; tokens after the last full page are not hashed."""
    return extend_hashes(root_hash(extra_key), token_ids, page_size)


def extend_hashes(parent_hash: int, token_ids: Tokens, page_size: int) -> list[int]:
    """The hashes of the full pages of `token_ids`, which follow the page `parent_hash` (or a `root_hash`)."""
    data = pack(token_ids)
    step = page_size * ID_BYTES
    hashes = []
    for start in range(0, len(data) - step + 1, step):
        # 0 means "no page" in KV events, so no page may have it.
        parent_hash = xxh3_64_intdigest(data[start : start + step], parent_hash) or 1
        hashes.append(parent_hash)
    return hashes
