"""A replica: the Serve deployment that owns a placement group and one shard actor in each of its bundles.

It is not on the token path. It starts its shards, lives and dies with them, watches that their loop moves, and lets it come
to rest before it stops.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time

import msgspec
import ray
from ray import serve
from ray.util import get_current_placement_group
from ray.util.placement_group import placement_group_table
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from raysgl.actors import coordinator as coordination
from raysgl.actors.errors import sentence
from raysgl.actors.placement import bundle_order
from raysgl.actors.shard import ModelShard, ShardSpec
from raysgl.config import EngineConfig, ModelConfig
from raysgl.engine.watchdog import Watchdog
from raysgl.logs import set_logs
from raysgl.messages import LoadedWeights, LogSettings

log = logging.getLogger(__name__)

ANSWER_S = 5.0
DRAIN_POLL_S = 0.05


class EngineReplica:
    """One replica of one model. device: cpu or cuda, of all its shards."""

    async def __init__(self, model: ModelConfig, device: str, logs: LogSettings, coordinator_shards: int = 1):
        set_logs(logs)
        self._logs = logs
        self._coordinator_shards = coordinator_shards
        context = serve.get_replica_context()
        self._model = model
        self._application = context.app_name
        self._name = f"{context.deployment}#{context.replica_id.unique_id}"
        self._epoch = time.time_ns()
        self._coordinator = coordination.connect(self._application)
        self._watchdog = Watchdog(model.hang_timeout_s)
        try:
            await self._start(device)
        except Exception as error:
            reason = sentence(error)
            await self._coordinator.failed.remote(self._name, f"model {model.engine.name} cannot start: {reason}")
            raise RuntimeError(reason) from error

    async def _start(self, device: str) -> None:
        await self._coordinator.phase.remote(self._name, self._model.engine.name, "starting")
        self._engine, self._weights = await self._others_weights()
        self._shards = self._create_shards(device)
        # From here on a dead shard ends this process too: callers fail now, and Serve starts the whole replica anew.
        self._starting = True
        lifelines = [shard.lifeline.remote() for shard in self._shards]
        threading.Thread(target=self._die_with, args=(lifelines,), name="lifelines", daemon=True).start()
        rendezvous = await self._shards[0].rendezvous.remote()
        await asyncio.gather(*(shard.load.remote(rendezvous) for shard in self._shards))
        facts = await self._shards[0].serve.remote(self._shards)
        self._starting = False
        log.info("%s serves %s on %s", self._name, self._model.engine.name, facts.device)

    async def _others_weights(self) -> tuple[EngineConfig, LoadedWeights | None]:
        """What to start with: where the model's other replicas have had new weights, those."""
        engine = self._model.engine
        packed = await self._coordinator.weights.remote(engine.name)
        weights = msgspec.msgpack.decode(packed, type=LoadedWeights | None)
        if weights is None or weights.instead_of != engine.source:  # theirs may be the config of before
            return engine, None
        log.info("%s starts with the weights that the others have: %s", self._name, weights.model_path)
        own = {"model_path": weights.model_path, "load_format": weights.load_format, "revision": None}
        return engine.model_copy(update={**own, "served_model_name": engine.name}), weights

    def _create_shards(self, device: str) -> list[ray.actor.ActorHandle]:
        """One in each bundle. On GPUs Ray shows each the one of its bundle alone."""
        group = get_current_placement_group()
        nodes = placement_group_table(group)["bundles_to_node_id"]
        shards = []
        for rank, bundle in enumerate(bundle_order(nodes, ray.get_runtime_context().get_node_id())):
            spec = ShardSpec(
                self._application,
                self._name,
                self._epoch,
                self._engine,
                device,
                rank,
                self._logs,
                self._coordinator_shards,
                self._weights,
            )
            options = {
                "num_cpus": self._model.num_cpus_per_shard,
                "num_gpus": 1 if device == "cuda" else 0,
                "max_concurrency": 1000,
                "scheduling_strategy": PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=bundle),
            }
            shards.append(ray.remote(ModelShard).options(**options).remote(spec))
        return shards

    def _die_with(self, lifelines: list[ray.ObjectRef]) -> None:
        try:
            ray.get(lifelines)
        except Exception as error:
            log.exception("a shard died")
            if self._starting:  # say why, since nobody else will
                reason = f"model {self._model.engine.name} cannot start: a shard died ({type(error).__name__}); see its log"
                self._coordinator.failed.remote(self._name, reason).future().result(ANSWER_S)
            os._exit(1)

    # ---------------------------------------------------------------- called by Serve

    async def check_health(self) -> None:
        """Ends this process and its shards when the engine hangs."""
        try:
            vitals = await asyncio.wait_for(self._shards[0].vitals.remote(), ANSWER_S)
        except TimeoutError:
            vitals = None
        reason = self._watchdog.look(vitals, time.monotonic())
        if reason is not None:
            log.error("%s restarts: %s", self._name, reason)
            self._end()

    def _end(self) -> None:
        """A process that hangs ends no more by itself; Ray kills it. Who waits for it hears of that at once."""
        for shard in self._shards:
            ray.kill(shard)
        os._exit(1)

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """For `raysgl.actors.autoscaling.TokenPolicy`."""
        return await self._shards[0].autoscaling_stats.remote()

    async def wake(self) -> None:
        """Called while there is no replica; that this one answers is all there is to it."""

    async def __del__(self) -> None:
        """Serve stops this replica: nothing new comes in, what runs may finish within `drain_timeout_s`."""
        if not hasattr(self, "_shards"):
            return
        deadline = time.monotonic() + self._model.drain_timeout_s
        await self._coordinator.draining.remote(self._name, self._epoch)
        await self._shards[0].drain.remote()
        while time.monotonic() < deadline:
            if (await self._shards[0].vitals.remote()).idle:
                break
            await asyncio.sleep(DRAIN_POLL_S)
        await self._shards[0].stop.remote()
        await self._coordinator.leave.remote(self._name, self._epoch)
