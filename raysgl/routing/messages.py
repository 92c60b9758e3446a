"""What the coordinator, the replicas and the ingress mirrors tell each other about routing: msgspec structs.

The replicas' side is `raysgl.messages.KVEvents`. Mirrors follow the coordinator by a log of deltas: the log of one coordinator
epoch is numbered 1, 2, ... and a mirror that has applied all up to a version equals the coordinator at that version.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from raysgl.messages import KVEvents, Load, ReplicaFacts
from raysgl.overview import HotPrefix, ScalingDecision


class ReplicaInfo(msgspec.Struct, array_like=True):
    """A replica as registered. Later lives of the same replica id must have greater epochs (time.time_ns() does).

    address: where it takes requests. keys: what else a connection needs (CURVE keys, node id); routing doesn't look inside.
    page_size: tokens. max_queued: waiting requests that it accepts.
    """

    replica: str
    epoch: int
    model: str
    address: str
    keys: dict[str, bytes] = {}
    page_size: int = 16
    max_queued: int = 256
    draining: bool = False


class IndexDump(msgspec.Struct, array_like=True):
    """A whole `PrefixIndex`. Bit i of a mask is for replicas[i].

    replicas: (replica, epoch, sequence expected next, whether its pages are known).
    hashes: little-endian uint64. masks: little-endian, `mask_bytes` each, in the order of `hashes`.
    """

    replicas: list[tuple[str, int, int, bool]]
    hashes: bytes
    masks: bytes
    mask_bytes: int


# ------------------------------------------------------------------ deltas, coordinator -> mirrors


class ReplicaJoined(msgspec.Struct, array_like=True, tag=True):
    """A replica registered, with an empty cache. It replaces earlier lives of the same id."""

    info: ReplicaInfo


class ReplicaLeft(msgspec.Struct, array_like=True, tag=True):
    """A replica is gone, and its cached pages with it."""

    model: str
    replica: str
    epoch: int


class ReplicaDraining(msgspec.Struct, array_like=True, tag=True):
    """A replica takes no new requests (or does so again)."""

    model: str
    replica: str
    epoch: int
    draining: bool


class CacheChanged(msgspec.Struct, array_like=True, tag=True):
    """A batch of KV events (and perhaps a load) that the coordinator has applied."""

    model: str
    batch: KVEvents


class LoadChanged(msgspec.Struct, array_like=True, tag=True):
    """A load report that came without usable KV events."""

    model: str
    replica: str
    epoch: int
    load: Load


class Routed(msgspec.Struct, array_like=True, tag=True):
    """An ingress sent a request to a replica: `tokens` will be computed there, and pages `hashes` be cached soon."""

    model: str
    ingress: str
    replica: str
    epoch: int
    tokens: int
    hashes: list[int]


class PrefixesHot(msgspec.Struct, array_like=True, tag=True):
    """What an ingress's requests find cached most often, as of now."""

    model: str
    ingress: str
    prefixes: list[HotPrefix]


Delta = ReplicaJoined | ReplicaLeft | ReplicaDraining | CacheChanged | LoadChanged | Routed | PrefixesHot | ScalingDecision


class ModelView(msgspec.Struct, array_like=True):
    """All that is known about one model."""

    model: str
    replicas: list[ReplicaInfo]
    loads: dict[str, Load]
    index: IndexDump
    decisions: list[ScalingDecision] = []


class Updates(msgspec.Struct, array_like=True):
    """The answer to a mirror. Either `deltas`, numbered since + 1 .. version, or (`views` not None) the whole state at `version`."""

    coordinator_epoch: int
    since: int
    version: int
    deltas: list[Delta] = []
    views: list[ModelView] | None = None


# ------------------------------------------------------------------ coordinator -> replica


class Reply(msgspec.Struct, array_like=True):
    """What a replica has to do next: nothing, `register` (the coordinator doesn't know this life of it: register, then send
    a snapshot), `snapshot` (batches were missed), or `dead` (a later life has registered, or this one was declared gone)."""

    coordinator_epoch: int
    action: Literal["none", "register", "snapshot", "dead"] = "none"


def facts_of(info: ReplicaInfo) -> ReplicaFacts:
    """What a replica turned out to be."""
    return msgspec.msgpack.decode(info.keys["facts"], type=ReplicaFacts)
