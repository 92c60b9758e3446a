"""What people look at, and no engine knows: which prefixes are hot, and what the autoscaler decided. msgspec structs, as `raysgl.messages`."""

from __future__ import annotations

import msgspec


class HotPrefix(msgspec.Struct, array_like=True):
    """A prefix that requests find cached. hash: of its last page. hits_per_second: an average over the last minutes. replicas: that
    have all of it, as far as is known where it is read. beginning: its first token ids (int32), if they are to be shown."""

    hash: int
    tokens: int
    hits_per_second: float
    replicas: int = 0
    beginning: bytes = b""


class ScalingFigures(msgspec.Struct, array_like=True):
    """A model's replicas together, as the autoscaler saw them. Prompt tokens that wait and are not cached: `queued_tokens`, and
    `queue_seconds` to compute them by one replica. Shares of all KV pages that running sequences hold (`kv_use`) and that are cached and
    were found lately (`hot_use`). ttft: seconds to the first token, an average over busy replicas. reports: replicas heard of."""

    queued_tokens: int = 0
    queue_seconds: float = 0.0
    kv_use: float = 0.0
    hot_use: float = 0.0
    ttft: float = 0.0
    reports: int = 0


class ScalingDecision(msgspec.Struct, array_like=True, tag=True):
    """The autoscaler changed a model's number of replicas, or (`before` is `after`) would have, but for a reason. at: Unix seconds."""

    model: str
    at: float
    before: int
    after: int
    why: str
    figures: ScalingFigures
