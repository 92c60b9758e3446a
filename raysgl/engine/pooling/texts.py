"""Which texts a step computes: as many as fit its token budget, by priority and arrival. No torch, no Ray.

See `raysgl.engine.loop.Planner` for what the loop asks of it.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from raysgl.engine.outputs import Outputs
from raysgl.messages import Finish, Load, PagesStored, Submit
from raysgl.sampling.token_masks import TokenMasks


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
        self._waiting: dict[tuple[str, int], Text] = {}  # in order unless not _sorted
        self._sorted = True
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
            self._arrivals,
        )
        self._sorted = self._sorted and (not text.priority or not self._waiting)
        self._waiting[text.key] = text
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
        if not self._waiting:
            return None
        if not self._sorted:
            order = sorted(self._waiting.values(), key=lambda text: (-text.priority, text.arrival))
            self._waiting = {text.key: text for text in order}
            self._sorted = True
        budget = self.config.step_tokens or float("inf")
        texts: list[Text] = []
        tokens = 0
        for text in self._waiting.values():
            if len(texts) == self.config.max_running or (texts and tokens + len(text.token_ids) > budget):
                break
            texts.append(text)
            tokens += len(text.token_ids)
        now = time.monotonic()
        for text in texts:
            del self._waiting[text.key]
            self._running[text.key] = text
            text.started_at = now
        self.stats.steps += 1
        return TextsStep(TextsPlan([text.token_ids for text in texts], [text.first_segment for text in texts]), texts, tokens)

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
