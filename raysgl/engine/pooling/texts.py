"""Which texts a step computes: as many as fit its token budget. No torch, no Ray.

By priority; among equals requests take turns by tokens, so that one text does not wait for the two thousand of a request that came
before (start-time fair queueing; Goyal et al. 1996). See `raysgl.engine.loop.Planner` for what the loop asks of it.
"""

from __future__ import annotations

import heapq
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from raysgl.engine.outputs import Outputs
from raysgl.messages import Finish, Load, PagesStored, Submit
from raysgl.sampling.token_masks import TokenMasks

MANY = 1024
"""Requests whose turns are remembered without asking whether that still matters."""


@dataclass(frozen=True)
class TextsConfig:
    """step_tokens, max_running: tokens and texts of a step at most (0: any number of tokens). A longer text has a step of its own.

    context_length: tokens of a text. max_queued: texts that may wait.
    """

    context_length: int
    max_running: int
    max_queued: int
    step_tokens: int


@dataclass(slots=True, eq=False)
class Text:
    """One text, or two as one (`first_segment`: tokens of the first). `Outputs` reads it like a sequence."""

    ingress: str
    uid: int
    request_id: str
    token_ids: np.ndarray
    first_segment: int
    priority: int
    turn: int
    """Its place in line: the tokens that are computed for each request before it, if all requests have equal shares."""
    arrival: int
    added_at: float = field(default_factory=time.monotonic)
    started_at: float = 0.0
    announced: bool = False
    wanted: bool = True
    """False once it was aborted while its step ran."""

    cached_tokens: ClassVar[int] = 0
    prompt_logprobs: ClassVar[None] = None

    @property
    def key(self) -> tuple[str, int]:
        return self.ingress, self.uid

    @property
    def request(self) -> tuple[str, str]:
        return self.ingress, self.request_id

    def __lt__(self, other: Text) -> bool:
        """Whether it goes first."""
        return (-self.priority, self.turn, self.arrival) < (-other.priority, other.turn, other.arrival)


@dataclass(frozen=True)
class TextsPlan:
    """One forward pass: the texts' token ids, and how many of each belong to the first of two (0: there is one)."""

    token_ids: list[np.ndarray]
    first_segments: list[int]

    guided: ClassVar[bool] = False


@dataclass(frozen=True)
class TextsStep:
    plan: TextsPlan
    texts: list[Text]
    num_prefill_tokens: int

    num_decode_tokens: ClassVar[int] = 0


class TextScheduler:
    """Not thread safe: one loop calls it."""

    def __init__(self, config: TextsConfig):
        self.config = config
        self.outputs = Outputs()
        self.stats = Load(max_running=config.max_running)
        self._waiting: dict[tuple[str, int], Text] = {}
        self._line: list[Text] = []  # a heap; may have texts that wait no more
        self._turn = 0  # of the text that went last
        self._next_turns: dict[tuple[str, str], int] = {}  # of requests that may have more texts
        self._running: dict[tuple[str, int], Text] = {}
        self._arrivals = 0

    # ---------------------------------------------------------------- requests in, outputs out

    def add(self, submit: Submit) -> None:
        """Queue a text. One that can never run is answered at once."""
        token_ids = np.frombuffer(submit.input_ids, dtype=np.int32)
        if (refusal := self._refusal(len(token_ids), submit.accepted)) is not None:
            self.outputs.finish(submit.ingress, submit.uid, refusal)
            return
        self._arrivals += 1
        text = Text(
            submit.ingress,
            submit.uid,
            submit.request_id,
            token_ids,
            submit.first_segment,
            submit.priority,
            self._turn,
            self._arrivals,
        )
        text.turn = max(self._turn, self._next_turns.get(text.request, 0))
        self._next_turns[text.request] = text.turn + len(token_ids)
        self._waiting[text.key] = text
        heapq.heappush(self._line, text)
        self.stats.queued_tokens += len(token_ids)

    def _refusal(self, count: int, accepted: bool) -> Finish | None:
        if not count:
            return Finish("error", message="the text is empty", status=400)
        if count > (limit := self.config.context_length):
            return Finish("error", message=f"the text has {count} tokens, but the context length is {limit}", status=400)
        if len(self._waiting) >= self.config.max_queued and not accepted:
            return Finish("abort", message=f"{len(self._waiting)} texts are waiting already", status=429)
        return None

    def abort(self, ingress: str, uids: list[int]) -> None:
        """Forget texts; what is being computed is thrown away."""
        for uid in uids:
            self._leave((ingress, uid))
            self.outputs.drop(ingress, uid)

    def abort_request(self, asking: str, request_id: str | None) -> None:
        """End a request, or all (None), but for those of the ingress that asks: it has seen to them itself."""
        for text in self._all():
            if text.ingress != asking and request_id in (None, text.request_id):
                self.outputs.of(text).finish = Finish("abort", message="the request was aborted")
                self._leave(text.key)

    def abort_ingress(self, ingress: str) -> None:
        """An ingress is gone, and with it everyone who waited for its texts."""
        self.abort(ingress, [text.uid for text in self._all() if text.ingress == ingress])
        self.outputs.drop_ingress(ingress)

    def _all(self) -> Iterator[Text]:
        return iter([*self._waiting.values(), *self._running.values()])

    def _leave(self, key: tuple[str, int]) -> None:
        if (text := self._waiting.pop(key, None)) is not None:
            self.stats.queued_tokens -= len(text.token_ids)
        elif (text := self._running.pop(key, None)) is not None:
            text.wanted = False

    def flush(self) -> tuple[bool, str]:
        """There is no cache."""
        return True, "nothing is cached"

    @property
    def idle(self) -> bool:
        return not self._waiting

    # ---------------------------------------------------------------- steps

    def schedule(self) -> TextsStep | None:
        """The next step, or None when nothing waits."""
        texts: list[Text] = []
        tokens = 0
        while (text := self._first()) is not None and self._fits(text, texts, tokens):
            texts.append(heapq.heappop(self._line))
            tokens += len(text.token_ids)
            self._turn = max(self._turn, text.turn)
            self._running[text.key] = self._waiting.pop(text.key)
        if not texts:
            return None
        if len(self._next_turns) > MANY + 2 * len(self._waiting):  # most of these have had no more than others by now
            self._next_turns = {request: turn for request, turn in self._next_turns.items() if turn > self._turn}
        now = time.monotonic()
        for text in texts:
            text.started_at = now
        self.stats.steps += 1
        return TextsStep(TextsPlan([text.token_ids for text in texts], [text.first_segment for text in texts]), texts, tokens)

    def _first(self) -> Text | None:
        """Of those that wait."""
        while self._line and self._line[0].key not in self._waiting:
            heapq.heappop(self._line)
        return self._line[0] if self._line else None

    def _fits(self, text: Text, texts: list[Text], tokens: int) -> bool:
        budget = self.config.step_tokens
        return not texts or (len(texts) < self.config.max_running and (not budget or tokens + len(text.token_ids) <= budget))

    def masks(self, step: TextsStep) -> TokenMasks | None:
        """Nothing is sampled."""
        return None

    def process(self, step: TextsStep, results_SR: np.ndarray) -> None:
        """What a step computed: float32, a row for each text."""
        self.stats.queued_tokens -= step.num_prefill_tokens
        self.stats.prompt_tokens += step.num_prefill_tokens
        for text, numbers in zip(step.texts, results_SR, strict=True):
            if text.wanted:
                output = self.outputs.of(text)
                output.numbers = numbers.astype("<f4", copy=False).tobytes()
                output.finish = Finish("stop")
                del self._running[text.key]

    # ---------------------------------------------------------------- looking in

    def load(self) -> Load:
        """How busy the replica is; the loop adds the rates it measures."""
        self.stats.running, self.stats.waiting = len(self._running), len(self._waiting)
        return self.stats

    def stored(self) -> Iterable[PagesStored]:
        """Nothing is cached."""
        return ()

    def next_period(self) -> None:
        """Nothing is hot."""

    def measured(self, prefill_rate: float) -> None:
        """Deadlines of texts are the ingress's alone."""
