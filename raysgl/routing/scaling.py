"""How many replicas a model should have: by the tokens that wait, the KV memory in use, and the time to the first token.

Request counts say little (one prompt may be a thousand times another), so none is used. Plain data in, a number out; the actor
layer feeds it (`raysgl.actors.autoscaling`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from raysgl.config import AutoscalingConfig
from raysgl.overview import ScalingFigures

HOT_ROOM = 0.9
"""Share of the remaining replicas' pages that busy and hot pages may fill for one replica to go: eviction needs some slack."""
MAX_GROWTH = 2.0
"""One decision at most doubles the replicas: the signals are averages, and overshoot them while new replicas load."""


@dataclass(frozen=True)
class ReplicaLoad:
    """What a replica last said of itself.

    queued_tokens: of prompts that wait, not cached. queue_seconds: time to compute them. used_pages: of running sequences.
    hot_pages: cached, and found by a request lately. ttft: average seconds to the first token. busy: anything runs or waits.
    """

    queued_tokens: float
    queue_seconds: float
    used_pages: float
    hot_pages: float
    total_pages: float
    ttft: float
    busy: bool


@dataclass
class Scaler:
    """One model's decisions. `why` explains the last one. held: fewer would do, but the others have no room for what is cached."""

    config: AutoscalingConfig
    why: str = ""
    held: bool = False
    _more_since: float | None = field(default=None, repr=False)
    _fewer_since: float | None = field(default=None, repr=False)

    def decide(self, replicas: Sequence[ReplicaLoad], current: int, waiting_for_any: bool, now: float) -> int:
        """The number of replicas to aim at.

        replicas: the loads known, maybe fewer than `current` while some start. waiting_for_any: requests wait and there is no
        replica. now: seconds, of any clock.
        """
        config = self.config
        if current == 0:
            self._more_since = self._fewer_since = None
            if waiting_for_any or config.min_replicas:
                self.why = "requests wait for the first replica" if waiting_for_any else "fewer than min_replicas"
                return max(1, config.min_replicas)
            return 0
        if not replicas:  # they start, or have not said anything yet
            return current
        wanted, why = self._wanted(replicas)
        if len(replicas) < current:  # some are starting: what they will take is not in the loads yet
            wanted = min(wanted, current)
        wanted = min(max(wanted, config.min_replicas), config.max_replicas)
        self._more_since = (self._more_since or now) if wanted > current else None
        self._fewer_since = (self._fewer_since or now) if wanted < current else None
        if self._more_since is not None and now - self._more_since >= config.upscale_delay_s:
            self._more_since = None
            self.why = why
            return min(wanted, math.ceil(current * MAX_GROWTH))
        if self._fewer_since is not None and now - self._fewer_since >= config.downscale_delay_s:
            need, room = self._room(replicas, current - 1)
            self.held = need > room
            if self.held:
                self.why = (
                    f"fewer would do, but running sequences and hot prefixes fill {need:.0f} pages; the others have {room:.0f}"
                )
                return current
            self._fewer_since = None
            self.why = why
            return current - 1
        if self._fewer_since is None:
            self.held = False
        return current

    def _wanted(self, replicas: Sequence[ReplicaLoad]) -> tuple[int, str]:
        """As many as the worst of the signals asks for, and what it says."""
        config = self.config
        if not any(replica.busy for replica in replicas):
            return 0, "nothing runs or waits"
        count, now = len(replicas), figures(replicas)
        queue = f"{now.queued_tokens:,} uncached prompt tokens wait, {now.queue_seconds:.1f} s of one replica"
        asks = [
            (now.queue_seconds / config.target_queue_s, f"{queue} (target {config.target_queue_s:g} s each)"),
            (
                count * now.kv_use / config.target_kv_use,
                f"sequences hold {now.kv_use:.0%} of KV (target {config.target_kv_use:.0%})",
            ),
        ]
        if (target := config.target_ttft_s) is not None:
            asks.append((count * now.ttft / target, f"the first token takes {now.ttft:.2f} s (target {target:g} s)"))
        most, why = max(asks)
        return max(1, math.ceil(most - 1e-9)), why

    def _room(self, replicas: Sequence[ReplicaLoad], remaining: int) -> tuple[float, float]:
        """Pages that all replicas use and that requests keep finding, and those that so many hold. Prefixes that several have cached
        count for each, so this errs on keeping a replica."""
        pages = sum(replica.total_pages for replica in replicas) / len(replicas)
        need = sum(replica.used_pages + replica.hot_pages for replica in replicas)
        return need, HOT_ROOM * remaining * pages


def figures(replicas: Sequence[ReplicaLoad]) -> ScalingFigures:
    """What the replicas say together."""
    pages = max(1.0, sum(replica.total_pages for replica in replicas))
    busy = [replica.ttft for replica in replicas if replica.busy]
    return ScalingFigures(
        int(sum(replica.queued_tokens for replica in replicas)),
        sum(replica.queue_seconds for replica in replicas),
        sum(replica.used_pages for replica in replicas) / pages,
        sum(replica.hot_pages for replica in replicas) / pages,
        sum(busy) / len(busy) if busy else 0.0,
        len(replicas),
    )
