"""An ingress's copy of what the coordinator knows, and the routers that decide from it.

    updates = coordinator.updates_since(*mirror.cursors[0])   # by long poll
    mirror.apply(updates, now)
    decisions = mirror.choose(model, requests, now)
    coordinator.routed(mirror.take_routed())              # batched

The coordinator may be several shards, each with a part of the index and a cursor of its own. The first one also says who is there
and how busy.

When the coordinator is away the mirror goes stale and serving goes on: loads still come with the tokens (`load`), deaths are
learned from Ray (`lost`). When it comes back with a new epoch, the mirror keeps its own view until the replicas have had time to
register again.
"""

from __future__ import annotations

import random
from collections import defaultdict, deque
from collections.abc import Iterable

from msgspec.structs import replace

from raysgl.messages import CacheMark, Load
from raysgl.overview import HotPrefix, ScalingDecision
from raysgl.routing.coordinator_state import KEPT_DECISIONS
from raysgl.routing.hot_prefixes import HotPrefixes
from raysgl.routing.index import PrefixIndex
from raysgl.routing.messages import (
    CacheChanged,
    Delta,
    LoadChanged,
    ModelView,
    PrefixesHot,
    ReplicaDraining,
    ReplicaInfo,
    ReplicaJoined,
    ReplicaLeft,
    Routed,
    Updates,
)
from raysgl.routing.router import Decision, Refusal, Router, RouteRequest


class Mirror:
    """Not thread safe. `now` is time.monotonic() of the ingress. `ingress` is its own id, to know its own notices by. shards: of the
    coordinator. policy: see `Router`. beginnings: see `HotPrefixes`."""

    def __init__(
        self, ingress: str, seed: int | None = None, shards: int = 1, policy: str = "raysgl", beginnings: bool = False
    ):
        self.ingress = ingress
        self._policy = policy
        self.cursors = [(0, -1)] * shards
        """For each shard of the coordinator, (its epoch, version) to ask updates since."""
        self.routers: dict[str, Router] = {}
        self.hot = HotPrefixes(ingress, beginnings)
        """What requests find cached; for whoever places them to tell."""
        self._decisions: defaultdict[str, deque[ScalingDecision]] = defaultdict(lambda: deque(maxlen=KEPT_DECISIONS))
        self.updated_at: float | None = None
        self.marked = False
        """A batch with a mark has come; for whoever tells of it, and sets this back."""
        self._random = random.Random(seed)
        self._outbox: list[Routed] = []
        # Lives known to be over before the coordinator says so. Later lives of a replica have greater epochs.
        self._lost: dict[str, int] = {}

    def staleness(self, now: float) -> float:
        """Seconds since the coordinator's first shard last answered; infinite before it has."""
        return float("inf") if self.updated_at is None else now - self.updated_at

    def apply(self, updates: Updates, now: float, shard: int = 0) -> bool:
        """Take the answer of a shard of the coordinator. False if it does not fit (a lost or repeated answer, or a coordinator that
        began again and has nothing to tell yet): nothing has changed then, and asking since its cursor again, a little later, is right.
        """
        if updates.views is not None:
            if shard:
                self._adopt_part(updates.views, shard)
            else:
                self._adopt(updates.views, now)
        elif (updates.coordinator_epoch, updates.since) != self.cursors[shard]:
            return False
        else:
            for delta in updates.deltas:
                if shard:
                    self._apply_to_part(delta, shard, now)
                else:
                    self._apply(delta, now)
        self.cursors[shard] = updates.coordinator_epoch, updates.version
        if not shard:
            self.updated_at = now
        return True

    # ------------------------------------------------------------------ deciding

    def choose(self, model: str, requests: Iterable[RouteRequest], now: float) -> list[Decision | Refusal]:
        """Place requests that arrived together (see `Router.choose`), and note them for the other ingresses."""
        router = self.routers.get(model)
        if router is None:
            return [Refusal("none", 1.0) for _ in requests]
        decisions = router.choose(requests, now)
        for decision in decisions:
            if isinstance(decision, Decision):
                self._outbox.append(
                    Routed(model, self.ingress, decision.replica, decision.epoch, decision.tokens, decision.new_hashes)
                )
        return decisions

    def take_routed(self) -> list[Routed]:
        """Decisions since the last call, to be told to the coordinator. May be thrown away if it is not there."""
        notices, self._outbox = self._outbox, []
        return notices

    def first_token(self, model: str, ticket: int, now: float) -> None:
        """See `Router.first_token`."""
        if model in self.routers:
            self.routers[model].first_token(ticket, now)

    def finish(self, model: str, ticket: int, now: float) -> None:
        """See `Router.finish`."""
        if model in self.routers:
            self.routers[model].finish(ticket, now)

    # ------------------------------------------------------------------ learned without the coordinator

    def load(self, model: str, replica: str, epoch: int, load: Load, now: float) -> None:
        """A load that came with tokens (`StepOutput.load`); tell `first_token` and `finish` of those tokens before."""
        if model in self.routers:
            self.routers[model].load(replica, epoch, load, now)

    def lost(self, model: str, replica: str, epoch: int) -> None:
        """This ingress saw the replica die; it is not used again, whatever the coordinator still says of this life."""
        self._lost[replica] = max(epoch, self._lost.get(replica, epoch))
        if model in self.routers:
            self.routers[model].leave(replica, epoch)

    def drain(self, model: str, replica: str, epoch: int) -> None:
        """The replica refused a request because it is draining."""
        if model in self.routers:
            self.routers[model].drain(replica, epoch)

    def replicas(self, model: str) -> list[ReplicaInfo]:
        """Known replicas of a model, draining ones too."""
        return self.routers[model].replicas() if model in self.routers else []

    def marks(self) -> list[CacheMark]:
        """What was taken down of each replica at its last mark."""
        return [mark for router in self.routers.values() for mark in router.index.marks()]

    def loads(self) -> dict[str, dict[str, Load]]:
        """model -> replica -> last report."""
        return {model: router.loads() for model, router in self.routers.items()}

    def hot_prefixes(self, now: float) -> dict[str, list[HotPrefix]]:
        """model -> what its requests find cached, those that save most tokens first."""
        return {model: self._held(router, self.hot.hottest(model, now)) for model, router in self.routers.items()}

    def scaling_decisions(self) -> dict[str, list[ScalingDecision]]:
        """model -> the autoscaler's last decisions, the newest first."""
        return {model: list(reversed(decisions)) for model, decisions in self._decisions.items()}

    # ------------------------------------------------------------------ inner

    @staticmethod
    def _held(router: Router, prefixes: list[HotPrefix]) -> list[HotPrefix]:
        for prefix in prefixes:
            prefix.replicas = router.index.holders(prefix.hash)
        return prefixes

    def _apply(self, delta: Delta, now: float) -> None:
        # Copies of infos, since routers change `draining`, and in one process the coordinator's object may be the same.
        if isinstance(delta, ReplicaJoined):
            if not self._is_lost(delta.info.replica, delta.info.epoch):
                self._router(delta.info.model).join(replace(delta.info))
            return
        router = self._router(delta.model)
        if isinstance(delta, CacheChanged):
            self._take_events(router, delta, now)
        elif isinstance(delta, LoadChanged):
            router.load(delta.replica, delta.epoch, delta.load, now)
        elif isinstance(delta, ReplicaDraining):
            router.drain(delta.replica, delta.epoch, delta.draining)
        elif isinstance(delta, ReplicaLeft):
            router.leave(delta.replica, delta.epoch)
        elif isinstance(delta, PrefixesHot):
            self.hot.told(delta, now)
        elif isinstance(delta, ScalingDecision):
            self._decisions[delta.model].append(delta)
        elif delta.ingress != self.ingress:
            router.routed(delta.replica, delta.epoch, delta.tokens, delta.hashes, now)

    def _apply_to_part(self, delta: Delta, shard: int, now: float) -> None:
        """What another shard than the first says counts for its part of the index alone."""
        model = delta.info.model if isinstance(delta, ReplicaJoined) else delta.model
        router = self._router(model)
        part = router.index.parts[shard]
        if isinstance(delta, ReplicaJoined):
            part.add(delta.info.replica, delta.info.epoch)
        elif isinstance(delta, ReplicaLeft):
            part.drop(delta.replica)
        elif isinstance(delta, CacheChanged):
            self._take_events(router, delta, now)

    def _take_events(self, router: Router, delta: CacheChanged, now: float) -> None:
        router.events(delta.batch, now)
        self.marked |= delta.batch.mark > 0

    def _adopt_part(self, views: list[ModelView], shard: int) -> None:
        parts = {view.model: PrefixIndex.load(view.index) for view in views}
        for model in {*self.routers, *parts}:
            self._router(model).index.parts[shard] = parts.get(model) or PrefixIndex()

    def _adopt(self, views: list[ModelView], now: float) -> None:
        """Replace everything by the coordinator's view, but keep what only this ingress knows: its requests and fresh loads."""
        before = self.routers
        self.routers = {}
        for view in views:
            router = self._router(view.model)
            router.index.parts[0] = PrefixIndex.load(view.index)
            for info in view.replicas:
                if self._is_lost(info.replica, info.epoch):
                    router.index.parts[0].drop(info.replica)
                else:
                    router.join(replace(info), index_too=False)
            # A coordinator that began anew knows none of those before.
            known = {decision.at: decision for decision in (*self._decisions[view.model], *view.decisions)}
            self._decisions[view.model] = deque((known[at] for at in sorted(known)), KEPT_DECISIONS)
            if view.model in before:
                router.adopt(before[view.model])
            for info in view.replicas:
                if info.replica in view.loads:
                    router.load(info.replica, info.epoch, view.loads[info.replica], now)
        for model, router in before.items():
            if model not in self.routers:
                # No replica now; its router stays for the tickets that are still out.
                for info in router.replicas():
                    router.leave(info.replica, info.epoch)
                self.routers[model] = router

    def _router(self, model: str) -> Router:
        router = self.routers.get(model)
        if router is None:
            router = self.routers[model] = Router(self._random.getrandbits(64), len(self.cursors), self._policy)
        return router

    def _is_lost(self, replica: str, epoch: int) -> bool:
        return epoch <= self._lost.get(replica, -1)
