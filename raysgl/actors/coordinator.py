"""The cache coordinator: one small Ray actor per application that knows who serves what and which prefix is cached where.

All of its state is soft (`raysgl.routing.CoordinatorState`): when Ray restarts it, replicas register again and send snapshots, and
ingresses keep serving from their mirrors meanwhile. Nobody asks it per request. It also holds what the launcher shows while models
load. When nobody has called it for a minute its application is gone, and it ends itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import time
from collections import Counter

import msgspec
import ray
from ray.actor import ActorHandle
from ray.exceptions import ActorDiedError, RayError

from raysgl.actors.index_check import COORDINATOR, VIEWS_S, wrong_masks
from raysgl.actors.transport import KeyPair
from raysgl.messages import CacheReport, KVEvents, ReplicaFacts
from raysgl.overview import ScalingDecision
from raysgl.routing import CacheView, CoordinatorState, ReplicaInfo, Reply, Routed, Views
from raysgl.routing.audit import covers
from raysgl.routing.messages import PrefixesHot, ReplicaJoined, facts_of

log = logging.getLogger(__name__)

NAMESPACE = "raysgl"
POLL_S = 1.0
"""How long a `sync` waits for news."""
GATHER_S = 0.01
"""How long news is gathered before a waiting `sync` is answered; bounds the answers to 100/s for each ingress."""
UNUSED_S = 60.0
MIRROR_S = 5.0
"""A mirror that has not polled for so long is gone."""
CALL_RETRIES = 3
"""A call made while the coordinator restarts (2 s) waits for it."""


class Phase(msgspec.Struct):
    """How far a starting replica is."""

    model: str
    text: str


class Status(msgspec.Struct):
    """For the launcher. starting: replica -> phase. failures: who -> why. serving: model -> facts of its replicas."""

    starting: dict[str, Phase]
    failures: dict[str, str]
    serving: dict[str, list[ReplicaFacts]]


class CacheCoordinator:
    """One shard of it. The first one holds all that there is only once; replicas register with every one, and tell each of the cached
    chains that are its (`raysgl.cache.hashing.shard_of`).

    `keys` are the application's client keys; Ray hands the same ones to the constructor when it restarts the actor."""

    def __init__(self, keys: tuple[bytes, bytes]):
        self._keys = keys
        self._state = CoordinatorState(time.time_ns(), time.monotonic())
        self._handles: dict[str, ActorHandle] = {}
        self._starting: dict[str, Phase] = {}
        self._failures: dict[str, str] = {}
        self._news = asyncio.Event()
        self._called_at = time.monotonic()
        self._upkeep: asyncio.Task | None = None
        self._lifelines: dict[str, asyncio.Task] = {}
        self._mirrors: dict[str, float] = {}
        self._views: dict[str, CacheView] = {}
        self._decode_info = msgspec.msgpack.Decoder(ReplicaInfo).decode
        self._decode_events = msgspec.msgpack.Decoder(KVEvents).decode
        self._decode_routed = msgspec.msgpack.Decoder(list[Routed]).decode

    async def client_keys(self) -> tuple[bytes, bytes]:
        """The CURVE key pair with which this application's processes connect to each other."""
        self._called()
        return self._keys

    # ---------------------------------------------------------------- replicas

    async def register(self, info: bytes, shard: ActorHandle) -> bytes:
        """A `ReplicaInfo`, and the actor whose `lifeline` tells whether it is alive. Answers a `Reply`."""
        self._called()
        replica = self._decode_info(info)
        reply = self._state.register(replica, time.monotonic())
        if reply.action != "dead":
            self._handles[replica.replica] = shard
            self._starting.pop(replica.replica, None)
            self._watch(replica, shard)
        return self._answer(reply)

    async def report(self, batch: bytes) -> bytes:
        """A `KVEvents`. Answers a `Reply`."""
        self._called()
        return self._answer(self._state.apply_events(self._decode_events(batch), time.monotonic()))

    async def draining(self, replica: str, epoch: int) -> None:
        self._called()
        self._state.set_draining(replica, epoch)
        self._tell()

    async def leave(self, replica: str, epoch: int) -> None:
        self._called()
        self._starting.pop(replica, None)
        self._remove(replica, epoch)

    async def lenders(self, model: str) -> list[ActorHandle]:
        """Shard 0 of the model's replicas that are not about to stop."""
        self._called()
        able = [info.replica for info in self._state.replicas(model) if not info.draining]
        return [self._handles[name] for name in able if name in self._handles]

    async def weights(self, model: str) -> bytes:
        """The `LoadedWeights` that most of the model's replicas have, or None: those of the config."""
        self._called()
        found = Counter(load.weights for load in self._state.loads().get(model, {}).values())
        return msgspec.msgpack.encode(found.most_common(1)[0][0] if found else None)

    async def phase(self, replica: str, model: str, text: str) -> None:
        """A replica that is starting says what it is doing."""
        self._called()
        self._starting[replica] = Phase(model, text)

    async def failed(self, who: str, reason: str) -> None:
        """Something could not start."""
        self._called()
        self._starting.pop(who, None)
        self._failures[who] = reason

    # ---------------------------------------------------------------- ingresses and launcher

    async def sync(self, ingress: str, epoch: int, version: int) -> tuple[bytes, dict[str, ActorHandle]]:
        """What an ingress's mirror at this cursor has missed (`Updates`), as soon as there is something. If replicas have joined, also
        the shard 0 actors of all, by replica."""
        self._called()
        self._mirrors[ingress] = time.monotonic()
        if not self._state.has_news(epoch, version, time.monotonic()):
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._news.wait(), POLL_S)
            await asyncio.sleep(GATHER_S)
        updates = self._state.updates_since(epoch, version, time.monotonic())
        joined = updates.views is not None or any(isinstance(delta, ReplicaJoined) for delta in updates.deltas)
        return msgspec.msgpack.encode(updates), self._handles if joined else {}

    async def routed(self, notices: bytes) -> None:
        """What an ingress sent where (a list of `Routed`)."""
        self._called()
        self._state.routed(self._decode_routed(notices))
        self._tell()

    async def hot(self, news: bytes) -> None:
        """What an ingress's requests find cached (a list of `PrefixesHot`)."""
        self._called()
        self._state.hot(msgspec.msgpack.decode(news, type=list[PrefixesHot]))
        self._tell()

    async def scaled(self, decision: bytes) -> None:
        """The autoscaler has made a `ScalingDecision`."""
        self._called()
        self._state.scaled(msgspec.msgpack.decode(decision, type=ScalingDecision))
        self._tell()

    async def status(self) -> bytes:
        """A `Status`."""
        self._called()
        serving: dict[str, list[ReplicaFacts]] = {}
        for info in self._state.replicas():
            serving.setdefault(info.model, []).append(facts_of(info))
        return msgspec.msgpack.encode(Status(self._starting, self._failures, serving))

    async def loads(self) -> dict[str, dict[str, dict[str, float]]]:
        """model -> replica -> `Load`, as plain dicts: for tools."""
        self._called()
        loads = self._state.loads()
        return {
            model: {name: msgspec.structs.asdict(load) for name, load in replicas.items()} for model, replicas in loads.items()
        }

    async def view(self, view: bytes) -> None:
        """A mirror has come to a mark; its `CacheView`."""
        self._called()
        decoded = msgspec.msgpack.decode(view, type=CacheView)
        self._views[decoded.who] = decoded

    async def own_view(self) -> bytes:
        """This shard's `CacheView`."""
        self._called()
        indexes = list(self._state.indexes.values())
        wrong = await wrong_masks(indexes)
        return msgspec.msgpack.encode(CacheView(COORDINATOR, [mark for index in indexes for mark in index.marks()], wrong))

    async def mirrors_views(self, reports: bytes) -> bytes:
        """The mirrors' `Views`, as soon as all have come to these reports (a list of `CacheReport`), or without those that have not."""
        self._called()
        wanted = msgspec.msgpack.decode(reports, type=list[CacheReport])
        deadline = time.monotonic() + VIEWS_S
        while True:
            now = time.monotonic()
            self._mirrors = {name: heard for name, heard in self._mirrors.items() if now - heard < MIRROR_S}
            self._views = {name: view for name, view in self._views.items() if name in self._mirrors}
            there = [view for view in self._views.values() if covers(view, wanted)]
            if len(there) == len(self._mirrors) or now > deadline:
                break
            await asyncio.sleep(GATHER_S)
        return msgspec.msgpack.encode(Views(there, sorted(self._mirrors.keys() - {view.who for view in there})))

    # ---------------------------------------------------------------- inner

    def _answer(self, reply: Reply) -> bytes:
        self._tell()
        return msgspec.msgpack.encode(reply)

    def _tell(self) -> None:
        """Wake the waiting mirrors."""
        self._news.set()
        self._news = asyncio.Event()

    def _called(self) -> None:
        self._called_at = time.monotonic()
        if self._upkeep is None:
            self._upkeep = asyncio.get_running_loop().create_task(self._look_after())

    def _watch(self, info: ReplicaInfo, shard: ActorHandle) -> None:
        old = self._lifelines.get(info.replica)
        if old is None or old.done():
            self._lifelines[info.replica] = asyncio.get_running_loop().create_task(self._until_dead(info, shard))

    async def _until_dead(self, info: ReplicaInfo, shard: ActorHandle) -> None:
        try:
            await shard.lifeline.remote()
        except ActorDiedError:
            self._remove(info.replica, info.epoch)
        except RayError as error:
            log.warning("replica %s: lifeline lost (%s)", info.replica, type(error).__name__)

    def _remove(self, replica: str, epoch: int) -> None:
        self._state.leave(replica, epoch)
        if not any(info.replica == replica for info in self._state.replicas()):
            self._handles.pop(replica, None)
            lifeline = self._lifelines.pop(replica, None)
            if lifeline is not None and lifeline is not asyncio.current_task():
                lifeline.cancel()
        self._tell()

    async def _look_after(self) -> None:
        while True:
            await asyncio.sleep(1)
            now = time.monotonic()
            if self._state.expire(now):
                self._tell()
            if now - self._called_at > UNUSED_S:
                ray.kill(ray.get_runtime_context().current_actor, no_restart=True)


def actor_name(application: str, shard: int = 0) -> str:
    return f"{application}:coordinator" + (f":{shard}" if shard else "")


def connect(application: str, shard: int = 0) -> ActorHandle:
    """The application's coordinator, or another shard of it than the first; whoever comes first starts it."""
    keys = KeyPair.new()
    return (
        ray.remote(CacheCoordinator)
        .options(
            name=actor_name(application, shard),
            namespace=NAMESPACE,
            lifetime="detached",
            get_if_exists=True,
            max_restarts=-1,
            max_task_retries=CALL_RETRIES,
            max_concurrency=10_000,
            num_cpus=0,
            # Not in the placement group of whoever came first: it would die with that replica.
            scheduling_strategy="DEFAULT",
        )
        .remote((keys.public, keys.secret))
    )


def kill(application: str) -> None:
    """End all shards of the application's coordinator, if there is one."""
    with contextlib.suppress(ValueError):
        for shard in itertools.count():
            ray.kill(ray.get_actor(actor_name(application, shard), namespace=NAMESPACE), no_restart=True)
