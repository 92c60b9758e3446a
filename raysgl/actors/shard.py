"""One tensor-parallel rank of a replica: a Ray actor with one GPU or a share of the CPUs.

Rank 0 runs the engine loop; the others execute its step plans. An async actor: its calls are few and cheap (`lifeline` is a call
that never returns, so that whoever holds it learns of this process's death within milliseconds), and everything that blocks runs in
threads. A rank that cannot go on ends its process; its replica follows, and Ray Serve replaces it.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import msgspec
import ray
from ray.actor import ActorHandle

from raysgl.actors import autoscaling
from raysgl.actors import coordinator as coordination
from raysgl.actors.engine_service import EngineService
from raysgl.actors.step_channel import PlanFollower, PlanPublisher
from raysgl.actors.transport import Endpoint, KeyPair, Transport
from raysgl.config import EngineConfig
from raysgl.engine.defaults import resolve_defaults, resolve_text_defaults, scheduler_config
from raysgl.engine.plan import StepPlan
from raysgl.engine.pooling.texts import TextsConfig
from raysgl.engine.scheduler import SchedulerConfig
from raysgl.engine.watchdog import Vitals
from raysgl.logs import set_logs
from raysgl.messages import (
    ChangeMemory,
    KVEvents,
    Load,
    LoadedWeights,
    LogSettings,
    Profile,
    ReplicaFacts,
    SetLogs,
    ShardCommand,
    UpdateWeights,
)
from raysgl.routing import ReplicaInfo, Reply
from raysgl.startup import StartupClock, described

if TYPE_CHECKING:
    import numpy as np

    from raysgl.grammar.compiler import GrammarCompiler
    from raysgl.models.lending import Lender

log = logging.getLogger(__name__)

FOLLOW_TIMEOUT_S = 600.0
"""The slowest rank may load for so long after the first is ready."""
ANSWER_S = 5.0


@dataclass(frozen=True)
class ShardSpec:
    """What a shard is part of. device: cpu or cuda."""

    application: str
    replica: str
    epoch: int
    engine: EngineConfig
    device: str
    rank: int
    logs: LogSettings
    coordinator_shards: int = 1
    weights: LoadedWeights | None = None
    """Where the other replicas have had new weights: `engine` says so too."""


@dataclass(frozen=True)
class Rendezvous:
    """Where the ranks of a replica meet: torch's store, and rank 0's step plans."""

    host: str
    store_port: int = 0
    plans: tuple[Endpoint, Endpoint] | None = None


class ModelShard:
    """Called by its `EngineReplica` in this order: `rendezvous` (rank 0), `load` (all), `serve` (rank 0)."""

    def __init__(self, spec: ShardSpec):
        set_logs(spec.logs)
        self._spec = spec
        self._config = spec.engine
        self._coordinators = [coordination.connect(spec.application, shard) for shard in range(spec.coordinator_shards)]
        self._coordinator = self._coordinators[0]
        self._host = ray.util.get_node_ip_address()
        self._said: tuple[int, str] | None = None
        self._transport: Transport | None = None
        self._store = None
        self._publisher: PlanPublisher | None = None
        self._service: EngineService | None = None
        self._grammars: GrammarCompiler | None = None
        self._shards: list[ActorHandle] = []
        self._lender: Lender | None = None
        self._lending = asyncio.Lock()
        self._forever = asyncio.Event()
        self._clock = StartupClock("process", spec.epoch / 1e9)
        self._clock.enter("imports")

    async def lifeline(self) -> None:
        """Never returns."""
        await self._forever.wait()

    async def rendezvous(self) -> Rendezvous:
        """Rank 0 opens what the other ranks connect to."""
        await self._open_transport()
        size = self._config.tp_size
        if size == 1:
            return Rendezvous(self._host)
        from torch.distributed import TCPStore

        self._store = TCPStore(self._host, 0, size, is_master=True, wait_for_workers=False)
        self._publisher = PlanPublisher(self._transport, size - 1)
        return Rendezvous(self._host, self._store.port, self._publisher.endpoints)

    async def load(self, rendezvous: Rendezvous) -> None:
        """Load this rank's part of the model. Returns when it can run steps."""
        await self._open_transport()
        await asyncio.to_thread(self._load, rendezvous)
        if self._spec.rank > 0:
            follower = PlanFollower(self._transport, self._spec.rank, rendezvous.plans)
            self._thread(lambda: follower.follow(self._execute, self._command), "follower")

    async def serve(self, shards: list[ActorHandle]) -> ReplicaFacts:
        """Rank 0: when all ranks (`shards`, in order) follow, start the loop and tell the coordinator."""
        self._shards = shards
        return await asyncio.to_thread(self._serve)

    async def drain(self) -> None:
        """Refuse new requests from now on."""
        if self._service is not None:
            self._service.drain()

    async def vitals(self) -> Vitals:
        """See `EngineService.vitals`."""
        return self._service.vitals() if self._service is not None else Vitals(0, True)

    async def mark(self, with_hashes: bool) -> bytes:
        """Rank 0: see `EventPublisher.mark`."""
        marked = await asyncio.wrap_future(self._service.publisher.mark(with_hashes)) if self._service is not None else None
        return msgspec.msgpack.encode(marked)

    async def autoscaling_stats(self) -> dict[str, float]:
        """Rank 0: see `raysgl.actors.autoscaling.stats`."""
        return autoscaling.stats(self._service.loop.load() if self._service is not None else Load())

    # ---------------------------------------------------------------- weights for a new replica

    async def rank(self, rank: int) -> ActorHandle | None:
        """Rank 0: another shard of this replica."""
        return self._shards[rank] if rank < len(self._shards) else None

    async def weights_offer(self) -> bytes | None:
        """An `Offer`, if this shard has weights to lend."""
        return msgspec.msgpack.encode(self._lender.offer) if self._lender is not None and self._lender.able else None

    async def lend(self, tensor: int, start: int, length: int, name: str) -> np.ndarray:
        """See `Lender.read`. One at a time: the steps come first."""
        async with self._lending:
            return await asyncio.to_thread(self._lender.read, tensor, start, length, name)

    async def small_files(self) -> dict[str, bytes]:
        """Rank 0: see `Lender`."""
        return self._lender.small_files

    async def stop(self) -> None:
        """Rank 0: end the loop, and with it the other ranks' following."""
        if self._service is not None:
            await asyncio.to_thread(self._service.stop)
            if self._grammars is not None:
                self._grammars.close()
        if self._publisher is not None:
            self._publisher.close()

    # ---------------------------------------------------------------- what the coordinator is told (from threads)

    def register(self, shard: int) -> Reply:
        answer = self._coordinators[shard].register.remote(msgspec.msgpack.encode(self._info), self._handle)
        return msgspec.msgpack.decode(answer.future().result(ANSWER_S), type=Reply)

    def report(self, batch: KVEvents) -> Reply:
        answer = self._coordinators[batch.shard].report.remote(msgspec.msgpack.encode(batch))
        return msgspec.msgpack.decode(answer.future().result(ANSWER_S), type=Reply)

    def _progress(self, done: float, text: str) -> None:
        """`raysgl.models.checkpoint.Progress`: how much is done (0 to 1), and of what. Rank 0 speaks for all, about ten times."""
        self._clock.heard(text)
        tenths = int(done * 10)
        if (tenths, text) == self._said:
            return
        self._said = (tenths, text)
        log.info("rank %d: %s %d %%", self._spec.rank, text, tenths * 10)
        if self._spec.rank == 0:
            shown = f"{text} {tenths * 10} %" if 0 < tenths < 10 else text
            self._coordinator.phase.remote(self._spec.replica, self._config.name, shown)

    # ---------------------------------------------------------------- inner

    async def _open_transport(self) -> None:
        if self._transport is None:
            self._transport = Transport(self._host, KeyPair(*await self._coordinator.client_keys.remote()))

    def _load(self, rendezvous: Rendezvous) -> None:
        # Imported here, so that the replica and the coordinator, which import this module, stay without torch.
        import torch
        from torch.distributed import TCPStore

        from raysgl import distributed
        from raysgl.actors.grammars import make_grammars
        from raysgl.actors.weights_peer import find_checkpoint
        from raysgl.engine.background import BackgroundRunner
        from raysgl.engine.occupation import Occupation
        from raysgl.engine.pooling.runner import PoolingRunner
        from raysgl.engine.profiling import StepProfiler
        from raysgl.engine.runner import ModelRunner
        from raysgl.engine.weight_update import WeightUpdater
        from raysgl.models.lending import lender_of
        from raysgl.models.pooling import pooling_spec

        spec, config = self._spec, self._config
        # Ray shows each shard one GPU, so it is always the first.
        device = torch.device("cuda:0" if spec.device == "cuda" else "cpu")
        self._progress(0.0, "resolving the model")
        self._checkpoint = find_checkpoint(config, spec.rank, self._coordinator, self._progress)
        self._pooling = pooling_spec(self._checkpoint.folder, config)
        if self._pooling is None:
            self._limits = resolve_defaults(config, spec.device, self._checkpoint.config().max_position_embeddings)
        else:
            self._limits = resolve_text_defaults(config, spec.device, self._pooling.max_length)
        if spec.rank == 0 and self._pooling is None:
            self._grammars = make_grammars(config, self._checkpoint)
        group = distributed.single()
        if config.tp_size > 1:
            self._progress(0.0, "waiting for the other shards")
            store = self._store or TCPStore(rendezvous.host, rendezvous.store_port, config.tp_size, is_master=False)
            group = distributed.start(spec.rank, config.tp_size, device, store=store)

        def make() -> ModelRunner | PoolingRunner:
            if self._pooling is not None:
                return PoolingRunner(config, self._checkpoint, self._pooling, self._limits, device, self._progress)
            return ModelRunner(config, self._checkpoint, spec.rank, group, device, self._progress)

        self._runner = BackgroundRunner(make, samples=spec.rank == 0) if spec.device == "cpu" else make()
        inner = self._runner.runner if spec.device == "cpu" else self._runner
        self._profiler = StepProfiler(inner, spec.replica, spec.rank)
        if self._pooling is None and config.load_format != "dummy":
            self._lender = lender_of(inner.model, config, self._checkpoint, spec.rank)
        self._occupation = Occupation(inner, group, self._lender)
        self._updater = WeightUpdater(inner, group, self._occupation, config, self._checkpoint, self._lender)
        # Weights and modules live as long as the process: the garbage collector need not walk them again.
        gc.collect()
        gc.freeze()

    def _serve(self) -> ReplicaFacts:
        spec, config, limits = self._spec, self._config, self._limits
        if self._publisher is not None:
            self._progress(0.0, "waiting for the other shards")
            self._publisher.wait_for_followers(FOLLOW_TIMEOUT_S)
        self._clock.enter("engine")
        if self._grammars is not None:
            self._grammars.wait()
        self._service = EngineService(
            spec.replica,
            spec.epoch,
            self._scheduler_config(),
            self._runner,
            self._transport,
            coordination=self,
            fatal=_exit,
            broadcast=self._publisher.send if self._publisher is not None else None,
            command=self._command_all,
            # On a CPU a step ahead hides nothing (the device is the host) and costs a step of latency.
            overlap=spec.device == "cuda" and not config.disable_overlap_schedule,
            grammars=self._grammars,
            coordinator_shards=spec.coordinator_shards,
            source=spec.weights.instead_of if spec.weights is not None else config.source,
            weights=spec.weights,
        )
        endpoint = self._service.inbox.endpoint
        self._clock.enter("serving")
        log.info("ready to serve: %s", described(self._clock.seconds))
        facts = ReplicaFacts(
            device=_device_name(spec.device),
            tp_size=config.tp_size,
            max_total_tokens=self._runner.num_pages * config.page_size,
            context_length=limits.context_length,
            max_running=limits.max_running,
            node=self._host,
            task=self._pooling.kind if self._pooling else "generate",
            started_at=spec.epoch / 1e9,
            startup=self._clock.seconds,
        )
        self._handle: ActorHandle = ray.get_runtime_context().current_actor
        self._info = ReplicaInfo(
            spec.replica,
            spec.epoch,
            config.name,
            endpoint.address,
            {"curve": endpoint.public_key, "facts": msgspec.msgpack.encode(facts)},
            page_size=config.page_size,
            max_queued=limits.max_queued,
        )
        for shard in range(spec.coordinator_shards):
            self.register(shard)
        self._service.start()
        return facts

    def _scheduler_config(self) -> SchedulerConfig | TextsConfig:
        config, limits = self._config, self._limits
        if self._pooling is not None:
            return TextsConfig(
                limits.context_length, limits.max_running, limits.max_queued, limits.step_tokens, config.max_queue_seconds
            )
        hf = self._checkpoint.config()
        return scheduler_config(config, limits, self._runner.num_pages, hf.eos_token_ids, hf.vocab_size)

    def _command_all(self, message: ShardCommand) -> tuple[bool, str]:
        """Rank 0: have all ranks carry it out; the answer is its own."""
        if self._publisher is not None:
            self._publisher.command(message)
        return self._command(message)

    def _command(self, message: ShardCommand) -> tuple[bool, str]:
        if isinstance(message, SetLogs):
            set_logs(message.change)
            return True, "logging was changed"
        work = partial(self._carry_out, message)
        done = self._runner.call(work) if self._spec.device == "cpu" else work()
        if not done[0]:
            log.warning("rank %d: %s: %s", self._spec.rank, type(message).__name__, done[1])
        return done

    def _carry_out(self, message: Profile | ChangeMemory | UpdateWeights) -> tuple[bool, str]:
        if isinstance(message, Profile):
            return self._profiler.stop() if message.start is None else self._profiler.start(message.start)
        if isinstance(message, UpdateWeights):
            return self._updater.update(message.update)
        change = message.change
        return self._occupation.release(change.tags) if change.release else self._occupation.resume(change.tags)

    def _execute(self, plan: StepPlan) -> None:
        """On other ranks than 0. On a CPU the step has run when this returns; a failure must be seen, and ends the rank."""
        step = self._runner.launch(plan)
        if self._spec.device == "cpu":
            step.result()

    def _thread(self, target: Callable[[], None], name: str) -> None:
        def run() -> None:
            try:
                target()
            except BaseException as error:
                log.exception("%s failed", name)
                _exit(f"{name} failed: {error!r}")

        threading.Thread(target=run, name=name, daemon=True).start()


def _exit(reason: str) -> None:
    """The only way out of a broken rank: half a replica must not live on."""
    log.error("this shard ends: %s", reason)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1)


def _device_name(device: str) -> str:
    if device != "cuda":
        return "cpu"
    import torch

    return torch.cuda.get_device_name(0)
