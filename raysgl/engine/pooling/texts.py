"""Which texts a step computes: as many as fit its token budget. No torch, no Ray.

Requests take turns by tokens, so that one text does not wait for the two thousand of a request that came before (start-time fair
queueing; Goyal et al. 1996). A point of priority is worth as many tokens as are computed in `PRIORITY_S`. See `raysgl.engine.loop.Planner` for what the loop asks of it.
"""

from __future__ import annotations

import heapq
import math
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from raysgl.engine.outputs import Outputs
from raysgl.engine.waiting import turn_of
from raysgl.messages import Finish, Load, PagesStored, Submit
from raysgl.sampling.token_masks import TokenMasks

RATE = 2000.0
"""Tokens per second, while nothing has been measured."""
MANY = 1024
"""Requests whose turns are remembered without asking whether that still matters."""


@dataclass(frozen=True)
class TextsConfig:
    """step_tokens, max_running: tokens and texts of a step at most (0: any number of tokens). A longer text has a step of its own.

    context_length: tokens of a text. max_queued: texts that may wait. max_queue_seconds: how long a new request may expect to.
    """

    context_length: int
    max_running: int
    max_queued: int
    step_tokens: int
    max_queue_seconds: float = math.inf


@dataclass(slots=True, eq=False)
class Text:
    """One text, or two as one (`first_segment`: tokens of the first). `Outputs` reads it like a sequence."""

    ingress: str
    uid: int
    request_id: str
    token_ids: np.ndarray
    first_segment: int
    turn: float
    """Tokens that are computed for each request before it begins, if all have equal shares."""
    place: float
    """In line: its turn, with its priority."""
    arrival: int
    deadline: float
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

    def __lt__(self, other: Text) -> bool:
        """Whether it goes first."""
        return (self.place, self.arrival) < (other.place, other.arrival)


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
        self.paused = False
        """Begins nothing new."""
        self.stats = Load(max_running=config.max_running)
        self._waiting: dict[tuple[str, int], Text] = {}
        self._line: list[Text] = []  # a heap; may have texts that wait no more
        self._turn = 0.0  # of the text that went last
        self._next_turns: dict[tuple[str, str], float] = {}  # of requests that may have more texts
        self._rate = 0.0
        self._running: dict[tuple[str, int], Text] = {}
        self._arrivals = 0

    # ---------------------------------------------------------------- requests in, outputs out

    def add(self, submit: Submit) -> None:
        """Queue a text. One that can never run is answered at once."""
        token_ids, request = np.frombuffer(submit.input_ids, dtype=np.int32), (submit.ingress, submit.request_id)
        if (refusal := self._refusal(submit, len(token_ids))) is not None:
            self.outputs.finish(submit.ingress, submit.uid, refusal)
            return
        self._arrivals += 1
        turn = max(self._turn, self._next_turns.get(request, 0.0))
        self._next_turns[request] = turn + len(token_ids)
        text = Text(
            submit.ingress,
            submit.uid,
            submit.request_id,
            token_ids,
            submit.first_segment,
            turn,
            turn + turn_of(0.0, submit.priority) * (self._rate or RATE),
            self._arrivals,
            time.monotonic() + submit.timeout_s if submit.timeout_s else math.inf,
        )
        self._waiting[text.key] = text
        heapq.heappush(self._line, text)
        self.stats.queued_tokens += len(token_ids)

    def _refusal(self, submit: Submit, count: int) -> Finish | None:
        if not count:
            return Finish("error", message="the text is empty", status=400)
        if count > (limit := self.config.context_length):
            return Finish("error", message=f"the text has {count} tokens, but the context length is {limit}", status=400)
        seconds = self.stats.queued_tokens / self._rate if self._rate else 0.0
        # Of a request some of whose texts were taken, all are.
        new = (submit.ingress, submit.request_id) not in self._next_turns
        if not submit.accepted and (
            len(self._waiting) >= self.config.max_queued or new and seconds > self.config.max_queue_seconds
        ):
            message = f"{len(self._waiting)} texts are waiting already"
            return Finish("abort", message=message, status=429, retry_after=seconds / 2)
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

    def drop_cached(self) -> None:
        """There is nothing."""

    @property
    def at_rest(self) -> bool:
        """Nothing is being computed."""
        return not self._running

    @property
    def idle(self) -> bool:
        return not self._waiting

    @property
    def num_live(self) -> int:
        """Texts that are computed or wait."""
        return len(self._waiting) + len(self._running)

    # ---------------------------------------------------------------- steps

    def schedule(self) -> TextsStep | None:
        """The next step, or None when nothing waits."""
        if self.paused:
            return None
        now = time.monotonic()
        texts: list[Text] = []
        tokens = 0
        while (text := self._first(now)) is not None and self._fits(text, texts, tokens):
            texts.append(heapq.heappop(self._line))
            tokens += len(text.token_ids)
            self._turn = max(self._turn, text.turn)
            self._running[text.key] = self._waiting.pop(text.key)
        if not texts:
            return None
        if len(self._next_turns) > MANY + 2 * len(self._waiting):  # most of these have had no more than others by now
            self._next_turns = {request: turn for request, turn in self._next_turns.items() if turn > self._turn}
        for text in texts:
            text.started_at = now
        self.stats.steps += 1
        return TextsStep(TextsPlan([text.token_ids for text in texts], [text.first_segment for text in texts]), texts, tokens)

    def _first(self, now: float) -> Text | None:
        """Of those that wait, and that somebody still wants."""
        while self._line:
            text = self._line[0]
            if text.key in self._waiting and text.deadline > now:
                return text
            heapq.heappop(self._line)
            if text.key in self._waiting:
                self.outputs.of(text).finish = Finish("abort", message="it waited until its deadline had passed", status=504)
                self._leave(text.key)
        return None

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
        """Tokens per second."""
        self._rate = prefill_rate
