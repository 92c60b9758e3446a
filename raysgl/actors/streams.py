"""One submitted prompt as its reader sees it, and what must be remembered to move it to another replica. No Ray."""

from __future__ import annotations

import asyncio
import itertools
import time
from array import array
from collections.abc import Callable
from dataclasses import dataclass, field

import msgspec

from raysgl.api.served_model import ServedModel
from raysgl.messages import DEFAULT_VERSION, Finish, SequenceOutput
from raysgl.routing import RouteRequest
from raysgl.sampling.params import SamplingParams

HOMELESS_S = 120.0
"""How long a stream whose replica died waits for another. A replica that loads a large model takes about a minute to come back."""
HELD_S = 60.0
"""The same for a new request, where there was a replica before: the only one is being replaced."""
COLD_START_S = 600.0
"""The same where the model has been scaled to zero: a node may have to be added, and an image pulled."""


@dataclass(slots=True, eq=False)
class Placement:
    """Sequences of one prompt that were sent to a replica together. ticket: the router's. live: sequences not over."""

    replica: str
    epoch: int
    ticket: int
    live: int = 0
    started: bool = False


@dataclass(slots=True, eq=False)
class LiveSequence:
    """One sampled continuation. uid changes when it moves, so that what its old replica still sends is known to be stale."""

    stream: Stream
    index: int
    uid: int = 0
    placement: Placement | None = None
    sent: array = field(default_factory=lambda: array("i"))
    announced: bool = False
    finished: bool = False
    refused_by: set[str] = field(default_factory=set)


class Stream:
    """Implements `raysgl.api.backend.OutputStream`. Written by the `Dispatcher`, read by one task."""

    def __init__(
        self,
        model: ServedModel,
        request_id: str,
        input_ids: bytes,
        sampling: SamplingParams,
        page_hashes: list[int],
        extra_key: str,
        priority: int,
        session: str,
        on_abort: Callable[[list[LiveSequence]], None],
        first_segment: int = 0,
        timeout_s: float | None = None,
    ):
        self.model, self.request_id, self.input_ids, self.sampling = model, request_id, input_ids, sampling
        self.page_hashes, self.extra_key, self.priority, self.session = page_hashes, extra_key, priority, session
        self.first_segment = first_segment
        self.sequences = [LiveSequence(self, i) for i in range(sampling.n)]
        self.came_at = time.monotonic()
        self.weight_version = DEFAULT_VERSION
        self.accepted = False
        """A replica had it, and lost it: it is not refused any more because queues are full."""
        self.deadline = None if timeout_s is None else self.came_at + timeout_s
        self.timer: asyncio.TimerHandle | None = None
        self._on_abort = on_abort
        self._news: list[tuple[int, SequenceOutput]] = []
        self._waiter: asyncio.Future[None] | None = None

    # ---------------------------------------------------------------- the reader's side

    async def get(self) -> list[tuple[int, SequenceOutput]]:
        while not self._news:
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        news, self._news = self._news, []
        return news

    def abort(self, index: int | None = None) -> None:
        chosen = self.sequences if index is None else [self.sequences[index]]
        live = [seq for seq in chosen if not seq.finished]
        if live:
            self._on_abort(live)

    # ---------------------------------------------------------------- the dispatcher's side

    def to_route(self, sequences: list[LiveSequence]) -> RouteRequest:
        """What routing needs to know to place these."""
        refused = frozenset(itertools.chain.from_iterable(seq.refused_by for seq in sequences))
        tokens = len(self.input_ids) // 4 + max(len(seq.sent) for seq in sequences)
        # A replica that looks full lets in what was accepted before, and may let in what goes before others that wait.
        insists = self.accepted or self.priority > 0
        return RouteRequest(self.page_hashes, tokens, len(sequences), self.session, refused, insists)

    def expire(self) -> None:
        """Its time is up: it ends with what it has, or with an error if that is nothing."""
        status = 504 if self.untouched else 0
        finish = Finish("abort", message="the request's time was up before its answer", status=status)
        self.cut(finish)

    def cut(self, finish: Finish) -> int:
        """End what has not finished. Returns how many sequences that were."""
        live = [seq for seq in self.sequences if not seq.finished]
        self.abort()
        for seq in live:
            self.end(seq, finish)
        return len(live)

    def deliver(self, seq: LiveSequence, output: SequenceOutput) -> None:
        """Hand an output to the reader, and remember its tokens in case the sequence must move."""
        if output.token_ids:
            seq.sent.extend(output.token_ids)
        if seq.announced:  # it has moved, and its new replica introduces it again
            output.cached_tokens = output.prompt_logprobs = None
        elif output.cached_tokens is not None:
            seq.announced = True
        self._news.append((seq.index, output))
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def end(self, seq: LiveSequence, finish: Finish) -> None:
        """Finish a sequence without its replica."""
        self.deliver(seq, SequenceOutput(seq.uid, [], finish))

    @property
    def untouched(self) -> bool:
        """Whether nothing has been delivered, so that it can be sent again as it was."""
        return not any(seq.announced or seq.sent or seq.finished for seq in self.sequences)

    def patience_s(self, asleep: bool) -> float:
        """How long it waits for a replica. asleep: the model may have been scaled to zero."""
        if asleep:
            return COLD_START_S
        return HELD_S if self.untouched and not self.accepted else HOMELESS_S

    def sampling_of(self, seq: LiveSequence) -> SamplingParams:
        """The settings with which one of `n` sequences goes on alone: its own seed, and nothing said twice."""
        return msgspec.structs.replace(
            self.sampling,
            n=1,
            seed=self.sampling.seed_of(seq.index),
            prompt_logprobs=None if seq.announced else self.sampling.prompt_logprobs,
        )
