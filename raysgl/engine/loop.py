"""The engine's main loop: receive, schedule, launch, take in results, emit. No torch, no Ray.

While the device runs step n, the loop plans and launches step n+1 (with `overlap`), then takes in n's tokens and sends them.
A sequence found finished in n may be in n+1 already; its extra token is dropped. A guided step (`raysgl.engine.guides`) is launched as
early as any, and samples when n's tokens are known.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, Protocol

import msgspec

from raysgl.engine.new_weights import NewWeights
from raysgl.engine.outputs import Outputs
from raysgl.engine.plan import PendingStep, Runner, StepPlan
from raysgl.engine.rates import Rates
from raysgl.engine.released import Released
from raysgl.engine.watchdog import Vitals
from raysgl.messages import (
    Abort,
    AbortRequest,
    ChangeMemory,
    Command,
    Done,
    FlushCache,
    KVEvent,
    Load,
    LoadedWeights,
    PagesStored,
    SequenceOutput,
    ShardCommand,
    Submit,
    ToEngine,
    UpdateWeights,
)
from raysgl.sampling.token_masks import TokenMasks

log = logging.getLogger(__name__)

IDLE_WAIT_S = 0.2
"""How long an idle loop sleeps for messages before it looks at `stop` again (a message wakes it at once)."""
POLL_S = 0.01
"""While a step runs, how often the loop looks for aborts and new requests."""
LOOK_S = 0.0005
"""The same while the next step is still to be planned."""
PERIOD_S = 30.0
"""Of the radix tree's periods; with the scheduler's `HOT_PERIODS`, hot means: found in the last five minutes."""

STALL_S = 0.002
"""How long it sleeps when there is work, but none of it can be planned: grammars are being compiled."""


class PlannedStep(Protocol):
    """One forward pass as its scheduler sees it. plan: what the runner gets."""

    @property
    def plan(self) -> Any: ...

    @property
    def num_prefill_tokens(self) -> int: ...

    @property
    def num_decode_tokens(self) -> int: ...


class Planner(Protocol):
    """What the loop asks of a scheduler: `raysgl.engine.scheduler.Scheduler`, or that of models that make vectors
    (`raysgl.engine.pooling.texts.TextScheduler`)."""

    outputs: Outputs
    paused: bool
    """Set from outside: begin nothing new. What runs goes on to its end, what comes waits."""

    @property
    def idle(self) -> bool:
        """Nothing to plan, now or soon."""

    @property
    def num_live(self) -> int:
        """Sequences, or texts, that run or wait."""

    @property
    def at_rest(self) -> bool:
        """Nothing has begun and not ended."""

    def add(self, submit: Submit) -> None: ...

    def abort(self, ingress: str, uids: list[int]) -> None: ...

    def abort_request(self, asking: str, request_id: str | None) -> None: ...

    def abort_ingress(self, ingress: str) -> None: ...

    def flush(self) -> tuple[bool, str]:
        """Drop what is cached: whether it was done, and a sentence about it."""

    def drop_cached(self) -> None:
        """The same while nothing runs, though something may wait."""

    def schedule(self) -> Any:
        """The next step (a `PlannedStep`); None: there is nothing to run now."""

    def masks(self, step: Any) -> TokenMasks | None:
        """For a guided step."""

    def process(self, step: Any, result: Any) -> None:
        """Take in what the step's runner says."""

    def load(self) -> Load:
        """Without rates."""

    def stored(self) -> Iterable[PagesStored]:
        """All that is cached."""

    def next_period(self) -> None:
        """Half a minute is over."""

    def measured(self, prefill_rate: float) -> None:
        """How many prompt tokens a second it has been lately."""


class EngineLoop:
    """Drives one scheduler and one runner.

    receive(timeout): messages that have come, waiting up to so many seconds for the first.
    emit(outputs): what is new, by ingress. Called once a step at most.
    broadcast(plan): tells the other shards to launch the same step; None when there are none.
    publish(events, load): cache events and load, for the coordinator; cheap, called once a round.
    command(message): has every shard carry out a command: whether it was done, and a sentence about it.
    answer(ingress, message): replies to a command.
    source: of the weights, as its config says. weights: what it was started with, if that is something else.
    """

    def __init__(
        self,
        scheduler: Planner,
        runner: Runner,
        receive: Callable[[float], list[ToEngine]],
        emit: Callable[[dict[str, list[SequenceOutput]]], None],
        publish: Callable[[list[KVEvent], Load], None],
        broadcast: Callable[[StepPlan], None] | None = None,
        answer: Callable[[str, Done], None] | None = None,
        command: Callable[[ShardCommand], tuple[bool, str]] | None = None,
        overlap: bool = True,
        source: str = "",
        weights: LoadedWeights | None = None,
    ):
        self.scheduler = scheduler
        self._runner = runner
        self._receive, self._emit, self._publish, self._broadcast, self._answer = receive, emit, publish, broadcast, answer
        self._command = command or (lambda message: (False, "this engine takes no commands"))
        self._released = Released(scheduler, self._command)
        self._new_weights = NewWeights(scheduler, self._command, source, weights)
        self._depth = 1 if overlap else 0
        self._launched: deque[tuple[PlannedStep, PendingStep]] = deque()
        self._guided: PlannedStep | None = None
        self._stalled = False
        self._rates = Rates()
        self._events: list[KVEvent] = []
        self._stopping = threading.Event()
        self._gone: deque[str] = deque()
        self._arrived: dict[tuple[str, int], float] = {}
        self._next_period = time.monotonic() + PERIOD_S
        self.progress = 0
        """Counts results taken in: a loop that is not `idle` and whose counter stands still is stuck."""
        self._expected: tuple[float | None, ...] = ()  # seconds that each launched step should take
        self._commanded = False

    def on_kv_event(self, event: KVEvent) -> None:
        """The scheduler's cache events come in here."""
        self._events.append(event)

    @property
    def idle(self) -> bool:
        return self.scheduler.idle and not self._launched

    def vitals(self) -> Vitals:
        """Whether it moves. From any thread."""
        steps = self._expected
        known = [seconds for seconds in steps if seconds is not None]
        return Vitals(self.progress, self.idle or self._commanded, sum(known) if len(known) == len(steps) else None)

    def load(self) -> Load:
        """A copy of the load, with measured rates; may be called from any thread."""
        rates = self._rates
        return msgspec.structs.replace(
            self.scheduler.load(),
            prefill_rate=rates.prefill,
            decode_rate=rates.decode,
            step_seconds=rates.step_seconds,
            ttft=rates.ttft,
            released=self._released.tags,
            weights=self._new_weights.loaded,
            changes=self._released.changes + self._new_weights.changes,
        )

    def stop(self) -> None:
        """Make `run` return after the step under way. From any thread."""
        self._stopping.set()

    def ingress_gone(self, ingress: str) -> None:
        """Abort all that an ingress asked for. From any thread."""
        self._gone.append(ingress)

    def run(self) -> None:
        """Serve until `stop`."""
        while not self._stopping.is_set():
            self.run_once(IDLE_WAIT_S)
        while self._launched:
            self._launched.popleft()[1].wait(None)

    def run_once(self, idle_wait: float = 0.0) -> bool:
        """One round. Returns whether anything was launched or taken in."""
        self._take_in_messages(idle_wait if self.idle else STALL_S if self._stalled else 0.0)
        self._renew_weights()
        launched = self._launch_next()
        finished = False
        while self._launched and (not launched or len(self._launched) > self._depth):
            early = not launched and not self._launched[-1][1].ending()
            if self._launched[0][1].wait(LOOK_S if early else POLL_S):
                self._take_in_result()
                finished = True
                break
            news = self._take_in_messages(0.0)
            self._flush_outputs()
            if not launched and (early or news):
                launched = self._launch_next()
        self._flush_outputs()
        self._stalled = not launched and not finished
        return launched or finished

    def _take_in_messages(self, timeout: float) -> bool:
        """Whether there were any."""
        messages = self._receive(timeout)
        while self._gone:  # before the messages: what an ingress of which something was lost sends again may be among them
            self.scheduler.abort_ingress(self._gone.popleft())
        for message in messages:
            if isinstance(message, Submit) and self._released.tags:
                self._released.refuse(message)
            elif isinstance(message, Submit):
                self.scheduler.add(message)
                self._arrived[message.ingress, message.uid] = time.monotonic()
            elif isinstance(message, Abort):
                self.scheduler.abort(message.ingress, message.uids)
                for uid in message.uids:
                    self._arrived.pop((message.ingress, uid), None)
            elif isinstance(message, AbortRequest):
                self.scheduler.abort_request(message.ingress, message.request_id)
            elif isinstance(message, FlushCache):
                self._reply(message, self.scheduler.flush())
            elif isinstance(message, UpdateWeights):
                if "weights" in self._released.tags:
                    self._reply(message, (False, "the weights are released; POST /resume_memory_occupation first"))
                elif not self._new_weights.begin(message):
                    self._reply(message, (False, "another update of the weights is waiting"))
                self._renew_weights()
            elif isinstance(message, ShardCommand):
                self._commanded = True  # writing a trace takes as long as it takes
                self._reply(message, self._carry_out(message))
                self._commanded = False
        return bool(messages)

    def _renew_weights(self) -> None:
        """If there are new ones, and nothing runs any more."""
        if (message := self._new_weights.waiting) is None or not self._new_weights.ready:
            return
        while self._launched:
            self._take_in_result()
        self._flush_outputs()  # they are of the old weights, and say so
        self._commanded = True
        done = self._new_weights.finish()
        self._flush_outputs()
        self._reply(message, done)
        self._commanded = False

    def _carry_out(self, message: ShardCommand) -> tuple[bool, str]:
        if not isinstance(message, ChangeMemory):
            return self._command(message)
        while self._launched and not self.scheduler.num_live:  # a step of sequences that have just ended
            self._take_in_result()
        done = self._released.change(message)
        self._flush_outputs()  # who hears that it is done must not think that it is still to be done
        return done

    def _reply(self, message: Command, done: tuple[bool, str]) -> None:
        if self._answer is not None:
            self._answer(message.ingress, Done(message.uid, *done))

    def _launch_next(self) -> bool:
        """Plan and launch a step, unless enough are on their way. While a long one runs this waits until it is about to end, so
        that requests which come meanwhile are in the next step and not in the one after."""
        if len(self._launched) > self._depth or (self._launched and not self._launched[-1][1].ending()):
            return False
        step = self.scheduler.schedule()
        if step is None:
            return False
        if not self._launched:
            self._rates.resume(time.perf_counter())
        if self._broadcast is not None:
            self._broadcast(step.plan)
        self._expected += (self._rates.expected(step.num_prefill_tokens, step.num_decode_tokens),)
        self._launched.append((step, self._runner.launch(step.plan)))
        self._guide_next()
        return True

    def _guide_next(self) -> None:
        """Let the oldest step sample, if it waits for what the steps before it have said: they have all been taken in."""
        if self._launched and self._launched[0][0].plan.guided and self._launched[0][0] is not self._guided:
            self._guided = self._launched[0][0]
            self._runner.sample(self.scheduler.masks(self._guided))

    def _take_in_result(self) -> None:
        step, pending = self._launched.popleft()
        self.scheduler.process(step, pending.result())
        self._guide_next()
        self._rates.step(time.perf_counter(), step.num_prefill_tokens, step.num_decode_tokens)
        self.scheduler.measured(self._rates.prefill)
        self.progress += 1
        self._expected = self._expected[1:]

    def _flush_outputs(self) -> None:
        outputs = self.scheduler.outputs.take()
        if outputs:
            self._note_first_tokens(outputs)
            self._emit(outputs)
        if time.monotonic() > self._next_period:
            self._next_period += PERIOD_S
            self.scheduler.next_period()
        events, self._events = self._events, []
        self._publish(events, self.load())

    def _note_first_tokens(self, outputs: dict[str, list[SequenceOutput]]) -> None:
        """Of a request with several sequences, the first one's."""
        for ingress, news in outputs.items():
            for output in news:
                arrived = self._arrived.pop((ingress, output.uid), None)
                if arrived is not None and (output.token_ids or output.numbers):
                    self._rates.first_token(time.monotonic() - arrived)
        if self.idle:
            self._arrived.clear()
