"""The coordinator without its actor: who serves what, what is cached where, and a numbered log of it for the mirrors.

All of it is soft. A coordinator that starts again begins a new epoch, knows nobody, answers `register` to whoever reports, and is
whole again once all replicas have registered and sent a snapshot. Until `settle_s` after its start it tells mirrors that knew an
earlier epoch nothing, so that they keep what they know meanwhile.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from msgspec.structs import replace

from raysgl.messages import KVEvents, Load, PagesRemoved, PagesStored
from raysgl.overview import ScalingDecision
from raysgl.routing.index import Applied, PrefixIndex
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
    Reply,
    Routed,
    Updates,
)

MAX_GONE = 10_000
"""Replica ids remembered after their end: more than die within any message's delay."""
KEPT_DECISIONS = 32
"""Scaling decisions of a model that are remembered."""
HOT_WEIGHT = 8
"""Of a hot prefix in the log: its beginning takes as much as some page hashes."""


class CoordinatorState:
    """Not thread safe. `now` is time.monotonic() of the coordinator's process.

    epoch: of this coordinator; greater than that of any before it (time.time_ns()).
    settle_s: how long replicas may take to come back after a restart. timeout_s: a replica not heard of for so long is gone.
    max_log: weight (about one a page hash) of the deltas kept; mirrors further behind get the whole state.
    """

    def __init__(self, epoch: int, now: float, settle_s: float = 3.0, timeout_s: float = 10.0, max_log: int = 1_000_000):
        self.epoch = epoch
        self.version = 0
        self._settled_at = now + settle_s
        self._timeout = timeout_s
        self._max_log = max_log
        self._log: deque[tuple[Delta, int]] = deque()
        self._log_weight = 0
        self._replicas: dict[str, ReplicaInfo] = {}
        self._heard: dict[str, float] = {}
        self._loads: dict[str, Load] = {}
        self._gone: dict[str, int] = {}
        self.indexes: dict[str, PrefixIndex] = {}
        self._decisions: dict[str, deque[ScalingDecision]] = {}

    # ------------------------------------------------------------------ from replicas

    def register(self, info: ReplicaInfo, now: float) -> Reply:
        """A replica says that it is there. Repeating it is harmless (of one epoch, only `draining` may change); a greater epoch
        replaces the life before.

        A replica whose first batch (sequence 0) is still to come needs no snapshot; others are asked for one when they report.
        """
        known = self._replicas.get(info.replica)
        if info.epoch <= self._gone.get(info.replica, -1) or (known is not None and info.epoch < known.epoch):
            return Reply(self.epoch, "dead")
        if known is not None and known.epoch == info.epoch:
            self._heard[info.replica] = now
            self.set_draining(info.replica, info.epoch, info.draining)
            return self._reply(info.replica)
        if known is not None:
            self._remove(known)
            self._bury(known.replica, known.epoch)
        self._replicas[info.replica] = replace(info)
        self._heard[info.replica] = now
        self.indexes.setdefault(info.model, PrefixIndex()).add(info.replica, info.epoch)
        # A copy: draining may be changed later, and a log entry must not change.
        self._append(ReplicaJoined(replace(info)))
        return self._reply(info.replica)

    def apply_events(self, batch: KVEvents, now: float) -> Reply:
        """A batch of KV events and perhaps a load; an empty one is a sign of life."""
        info = self._known(batch.replica, batch.epoch)
        if isinstance(info, Reply):
            return info
        self._heard[batch.replica] = now
        if batch.load is not None:
            self._loads[batch.replica] = batch.load
        if self.indexes[info.model].apply(batch) is Applied.OK:
            self._append(CacheChanged(info.model, batch))
        elif batch.load is not None:
            self._append(LoadChanged(info.model, batch.replica, batch.epoch, batch.load))
        return self._reply(batch.replica)

    def apply_load(self, replica: str, epoch: int, load: Load | None, now: float) -> Reply:
        """A load report (None: only a sign of life) outside of a batch."""
        info = self._known(replica, epoch)
        if isinstance(info, Reply):
            return info
        self._heard[replica] = now
        if load is not None:
            self._loads[replica] = load
            self._append(LoadChanged(info.model, replica, epoch, load))
        return self._reply(replica)

    def set_draining(self, replica: str, epoch: int, draining: bool = True) -> None:
        """A replica takes no new requests, or does so again. Ignored for a life that is not the present one."""
        info = self._replicas.get(replica)
        if info is not None and info.epoch == epoch and info.draining != draining:
            info.draining = draining
            self._append(ReplicaDraining(info.model, replica, epoch, draining))

    def leave(self, replica: str, epoch: int) -> None:
        """A life of a replica has ended, and so has any before it; they will not be let back. Later ones are not concerned."""
        info = self._replicas.get(replica)
        if info is not None and info.epoch <= epoch:
            self._remove(info)
        self._bury(replica, epoch)

    def expire(self, now: float) -> list[ReplicaInfo]:
        """Remove replicas not heard of for `timeout_s`, and return them. They may register again: perhaps only the network was away."""
        silent = [info for name, info in self._replicas.items() if now - self._heard[name] > self._timeout]
        for info in silent:
            self._remove(info)
        return silent

    def snapshot_requests(self) -> list[tuple[str, int]]:
        """(replica, epoch) of those that must send a snapshot because batches are missing."""
        return [request for index in self.indexes.values() for request in index.unsynced()]

    # ------------------------------------------------------------------ from and to ingresses

    def routed(self, notices: Iterable[Routed]) -> None:
        """Ingresses tell what they sent where; passed on to the other mirrors."""
        for notice in notices:
            info = self._replicas.get(notice.replica)
            if info is not None and info.epoch == notice.epoch:
                self._append(notice)

    def hot(self, news: Iterable[PrefixesHot]) -> None:
        """An ingress tells what is hot there; passed on to the mirrors, and not kept: it is told again soon."""
        for told in news:
            if told.model in self.indexes:
                self._append(told)

    def scaled(self, decision: ScalingDecision) -> None:
        """The autoscaler has decided; kept and passed on. It may be the first that is heard of a model."""
        self.indexes.setdefault(decision.model, PrefixIndex())
        self._decisions.setdefault(decision.model, deque(maxlen=KEPT_DECISIONS)).append(decision)
        self._append(decision)

    def updates_since(self, epoch: int, version: int, now: float, max_deltas: int = 10_000) -> Updates:
        """What a mirror that is at `version` of coordinator epoch `epoch` has missed (at most `max_deltas` at a time).

        The whole state if it is of another epoch, too far behind, or new (version -1). But while this coordinator has not
        settled, a mirror of another epoch gets nothing: it knows more.
        """
        if epoch != self.epoch and version >= 0 and now < self._settled_at:
            return Updates(self.epoch, version, version)
        behind = self.version - version
        if epoch != self.epoch or version < 0 or not 0 <= behind <= len(self._log):
            return Updates(self.epoch, version, self.version, views=self._views())
        first = len(self._log) - behind
        count = min(behind, max_deltas)
        # Islice of a deque walks from its left end; the news is at the right one.
        deltas = [self._log[i][0] for i in range(first, first + count)]
        return Updates(self.epoch, version, version + count, deltas)

    def has_news(self, epoch: int, version: int, now: float) -> bool:
        """Whether `updates_since` would bring a mirror anything; for long polls."""
        if epoch == self.epoch:
            return version != self.version
        return version < 0 or now >= self._settled_at

    def replicas(self, model: str | None = None) -> list[ReplicaInfo]:
        """Registered replicas, of one model or all."""
        return [info for info in self._replicas.values() if model is None or info.model == model]

    def loads(self) -> dict[str, dict[str, Load]]:
        """model -> replica -> last report."""
        result: dict[str, dict[str, Load]] = {model: {} for model in self.indexes}
        for name, load in self._loads.items():
            result[self._replicas[name].model][name] = load
        return result

    # ------------------------------------------------------------------ inner

    def _known(self, replica: str, epoch: int) -> ReplicaInfo | Reply:
        info = self._replicas.get(replica)
        if info is not None and info.epoch == epoch:
            return info
        dead = epoch <= self._gone.get(replica, -1) or (info is not None and epoch < info.epoch)
        return Reply(self.epoch, "dead" if dead else "register")

    def _reply(self, replica: str) -> Reply:
        synced = self.indexes[self._replicas[replica].model].synced(replica)
        return Reply(self.epoch, "none" if synced else "snapshot")

    def _remove(self, info: ReplicaInfo) -> None:
        del self._replicas[info.replica], self._heard[info.replica]
        self._loads.pop(info.replica, None)
        self.indexes[info.model].drop(info.replica)
        self._append(ReplicaLeft(info.model, info.replica, info.epoch))

    def _bury(self, replica: str, epoch: int) -> None:
        """Remember that lives up to this epoch are over, even one that never registered (its registration may be late)."""
        self._gone[replica] = max(epoch, self._gone.pop(replica, epoch))
        if len(self._gone) > MAX_GONE:
            del self._gone[next(iter(self._gone))]

    def _append(self, delta: Delta) -> None:
        weight = 16 + _pages(delta)
        self._log.append((delta, weight))
        self._log_weight += weight
        self.version += 1
        while self._log_weight > self._max_log and len(self._log) > 1:
            self._log_weight -= self._log.popleft()[1]

    def _views(self) -> list[ModelView]:
        return [
            ModelView(
                model,
                [replace(info) for info in self._replicas.values() if info.model == model],
                {info.replica: self._loads[info.replica] for info in self.replicas(model) if info.replica in self._loads},
                index.dump(),
                list(self._decisions.get(model, ())),
            )
            for model, index in self.indexes.items()
        ]


def _pages(delta: Delta) -> int:
    if isinstance(delta, PrefixesHot):
        return HOT_WEIGHT * len(delta.prefixes)
    if isinstance(delta, CacheChanged):
        return sum(len(event.hashes) for event in delta.batch.events if isinstance(event, PagesStored | PagesRemoved))
    return len(delta.hashes) if isinstance(delta, Routed) else 0
