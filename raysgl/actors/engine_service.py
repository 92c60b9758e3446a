"""The one place where a replica's scheduler, loop, runner and wires are put together. No Ray, no torch."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Protocol

from raysgl.actors.engine_link import EngineInbox, EngineOutbox
from raysgl.actors.publisher import EventPublisher
from raysgl.actors.transport import Transport
from raysgl.engine.cache_report import cache_report
from raysgl.engine.loop import EngineLoop
from raysgl.engine.plan import Runner, StepPlan
from raysgl.engine.pooling.texts import TextScheduler, TextsConfig
from raysgl.engine.scheduler import Scheduler, SchedulerConfig
from raysgl.engine.watchdog import Vitals
from raysgl.grammar.interface import Grammars
from raysgl.messages import KVEvent, KVEvents, Load, LoadedWeights, Logs, SequenceOutput, SetLogs, ShardCommand
from raysgl.routing.messages import Reply

log = logging.getLogger(__name__)


class Coordination(Protocol):
    """What a replica says to the coordinator. Calls block, and raise when it does not answer."""

    def register(self, shard: int) -> Reply: ...

    def report(self, batch: KVEvents) -> Reply: ...


class EngineService:
    """A replica's rank 0, ready to serve: sockets, loop thread, sender thread, publisher thread.

    fatal(reason) is called (in some thread) when it cannot go on; it must not return to a working process.
    """

    def __init__(
        self,
        replica: str,
        epoch: int,
        config: SchedulerConfig | TextsConfig,
        runner: Runner,
        transport: Transport,
        coordination: Coordination,
        fatal: Callable[[str], None],
        broadcast: Callable[[StepPlan], None] | None = None,
        command: Callable[[ShardCommand], tuple[bool, str]] | None = None,
        overlap: bool = True,
        grammars: Grammars | None = None,
        coordinator_shards: int = 1,
        source: str = "",
        weights: LoadedWeights | None = None,
    ):
        if isinstance(config, TextsConfig):
            self.scheduler: Scheduler | TextScheduler = TextScheduler(config)
        else:
            self.scheduler = Scheduler(config, lambda event: self.loop.on_kv_event(event), grammars)
        self.outbox = EngineOutbox(transport, replica, epoch, lambda ingress: self.loop.ingress_gone(ingress))
        self.inbox = EngineInbox(transport, self.outbox)
        self.publisher = EventPublisher(
            replica,
            epoch,
            coordination.report,
            coordination.register,
            self.scheduler.stored,
            lambda: fatal("another life of this replica has registered"),
            lambda with_hashes: cache_report(self.scheduler, replica, epoch, coordinator_shards, with_hashes),
            coordinator_shards,
        )
        self.loop = EngineLoop(
            self.scheduler,
            runner,
            receive=self.inbox.receive,
            emit=self._emit,
            publish=self._publish,
            broadcast=broadcast,
            answer=self.outbox.answer,
            command=self._command,
            overlap=overlap,
            source=source,
            weights=weights,
        )
        self._outputs: dict[str, list[SequenceOutput]] = {}
        self._changes = 0
        self._fatal = fatal
        self._carry_out = command
        self._thread = threading.Thread(target=self._run, name="engine-loop", daemon=True)

    def start(self) -> None:
        """Begin to serve; the replica must be registered."""
        self._thread.start()
        self.publisher.start()

    def drain(self) -> None:
        """Refuse new requests from now on."""
        self.inbox.draining = True

    def stop(self) -> None:
        """End the threads, after the step under way and what is queued for the ingresses."""
        self.loop.stop()
        self._thread.join(10)
        self.publisher.close()
        self.outbox.close()
        self.inbox.close()

    def vitals(self) -> Vitals:
        """For a `Watchdog`. From any thread."""
        return self.loop.vitals()

    def _command(self, message: ShardCommand) -> tuple[bool, str]:
        if self._carry_out is None:
            return False, "this engine takes no commands"
        if isinstance(message, SetLogs):
            self.outbox.tell_all(Logs(message.change))
        return self._carry_out(message)

    def _emit(self, outputs: dict[str, list[SequenceOutput]]) -> None:
        self._outputs = outputs

    def _publish(self, events: list[KVEvent], load: Load) -> None:
        """Comes right after `_emit`, with the load that goes out together with the tokens: a finished request's ingress must not
        think that it still runs."""
        if self._outputs:
            self.outbox.emit(self._outputs, self.loop.progress, load)
            self._outputs = {}
        if load.changes != self._changes:
            self._changes = load.changes
            self.outbox.tell_all_load(self.loop.progress, load)
        self.publisher.publish(events, load)

    def _run(self) -> None:
        try:
            self.loop.run()
        except BaseException as error:
            log.exception("the engine loop failed")
            self._fatal(f"the engine loop failed: {error!r}")
