"""A request at the backend: submit its prompts, turn outputs into pieces, count, and give everything back at the end."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Self

from raysgl.api.backend import Backend, OutputStream, QueueFull, Unavailable
from raysgl.api.call import current, session
from raysgl.api.errors import bad_request, from_engine, queue_full, unavailable
from raysgl.api.metric_table import ModelStats
from raysgl.api.sequence_text import Piece, SequenceText
from raysgl.api.served_model import ServedModel
from raysgl.api.tally import Tally
from raysgl.messages import DEFAULT_VERSION, SequenceOutput, TokenLogprob
from raysgl.sampling.params import SamplingParams


@dataclass(slots=True)
class Prompt:
    """One prompt of a request. `sampling` is complete. `text` is what `echo` shows. `request_id` and `extra_key`: its own, where
    the prompts of a request have different ones."""

    input_ids: list[int]
    sampling: SamplingParams
    text: str = ""
    request_id: str | None = None
    extra_key: str | None = None
    constraint_field: str | None = None
    """What the request calls `sampling.constraint`."""
    kept: frozenset[int] = frozenset()
    """Special tokens that are marks for the answer's parser, and so stay in the text."""
    reasons: bool = False
    """Whether the answer's parser looks for reasoning."""


@dataclass(slots=True)
class Job:
    """What a request asks of the backend. Sequences are numbered prompt * n + sample."""

    model: ServedModel
    request_id: str
    prompts: list[Prompt]
    extra_key: str = ""
    priority: int = 0
    session: str = ""
    arrived_at: float = field(default_factory=time.perf_counter)


MAX_SEQUENCES = 4096
"""Of one request."""


class Generation:
    """Use it as an async context manager: leaving it, in whatever way, aborts what has not finished.

    prompt_logprobs: prompt index -> what the engine said about its tokens, there before the first piece of that prompt.
    """

    def __init__(self, backend: Backend, job: Job, stats: ModelStats):
        self.job, self.n = job, job.prompts[0].sampling.n
        if len(job.prompts) * self.n > MAX_SEQUENCES:
            raise bad_request(f"{len(job.prompts)} prompts with n {self.n} are more than {MAX_SEQUENCES} sequences", "n")
        lengths = [len(prompt.input_ids) for prompt in job.prompts]
        self._timeout_s = current().time_left()
        self._tally = Tally(stats, current(), lengths, self.n, job.arrived_at)
        self.usage = self._tally.usage
        self.prompt_logprobs: dict[int, list[TokenLogprob]] = {}
        self._backend = backend
        self._streams: list[OutputStream | None] = [None] * len(job.prompts)
        self._texts = [
            SequenceText(p * self.n + i, job.model.tokenizer, prompt.sampling, prompt.kept, prompt.reasons)
            for p, prompt in enumerate(job.prompts)
            for i in range(self.n)
        ]
        self._open = len(self._texts)
        self._pumps: list[asyncio.Task[None]] = []
        self._news: asyncio.Queue[tuple[int, Sequence[tuple[int, SequenceOutput]] | BaseException]] = asyncio.Queue()

    async def __aenter__(self) -> Self:
        """Submits. ApiError 429 or 503."""
        try:
            self._tally.submitted(self.job)
            if len(self.job.prompts) == 1:
                await self._submit(0)
            else:
                await self._submit_all()
            self._tally.routed()
        except BaseException as error:
            self._close()
            if isinstance(error, QueueFull):
                raise queue_full(error) from None
            if isinstance(error, Unavailable):
                raise unavailable(str(error)) from None
            raise
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self._close()

    @property
    def open(self) -> int:
        """Sequences that have not finished."""
        return self._open

    def num_tokens(self, index: int) -> int:
        """How many tokens sequence `index` has generated."""
        return self._texts[index].num_tokens

    def reasoned(self, index: int, spans: list[tuple[int, int | None]]) -> None:
        """Reasoning stands in these parts of sequence `index`'s text so far (see `SequenceText.tokens_in`)."""
        self._tally.reasoned(index, self._texts[index].tokens_in(spans))

    def reasoning_tokens(self, index: int) -> int:
        """How many of sequence `index`'s tokens are reasoning."""
        return self._tally.reasoning[index]

    def cached_tokens(self, prompt: int) -> int:
        """How much of a prompt was in the cache."""
        return self._tally.cached[prompt] or 0

    def weight_version(self, prompt: int) -> str:
        """Of the weights that answer a prompt."""
        stream = self._streams[prompt]
        return DEFAULT_VERSION if stream is None else stream.weight_version

    async def next(self) -> list[Piece]:
        """What has arrived since the last time, one piece a sequence. ApiError if the engine refuses or fails."""
        prompt, news = await self._get()
        return self._take(prompt, news)

    # ---------------------------------------------------------------- submitting

    async def _submit(self, index: int) -> None:
        job, prompt = self.job, self.job.prompts[index]
        self._streams[index] = await self._backend.submit(
            job.model,
            prompt.request_id or job.request_id,
            prompt.input_ids,
            prompt.sampling,
            extra_key=job.extra_key if prompt.extra_key is None else prompt.extra_key,
            priority=job.priority,
            session=job.session or session(current().headers),
            timeout_s=self._timeout_s,
        )

    async def _submit_all(self) -> None:
        """All in one turn of the loop, so that they are routed together."""
        results = await asyncio.gather(*map(self._submit, range(len(self.job.prompts))), return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException):
                raise result
        self._pumps = [asyncio.create_task(self._pump(index)) for index in range(len(self._streams))]

    async def _pump(self, index: int) -> None:
        """Several prompts have several streams; what they say goes into one queue."""
        stream, left = self._streams[index], self.n
        try:
            while left:
                news = await stream.get()
                left -= sum(output.finish is not None for _, output in news)
                self._news.put_nowait((index, news))
        except Exception as error:  # noqa: BLE001 (raised where the pieces are taken)
            self._news.put_nowait((index, error))

    async def _get(self) -> tuple[int, Sequence[tuple[int, SequenceOutput]]]:
        if not self._pumps:
            return 0, await self._streams[0].get()
        index, news = await self._news.get()
        if isinstance(news, BaseException):
            raise news
        return index, news

    def _close(self) -> None:
        for pump in self._pumps:
            pump.cancel()
        self._tally.closed(self._open)
        self._open = 0
        for stream in self._streams:
            if stream is not None:
                stream.abort()

    # ---------------------------------------------------------------- outputs

    def _take(self, prompt: int, news: Sequence[tuple[int, SequenceOutput]]) -> list[Piece]:
        now = time.perf_counter()
        if len(news) > 1:
            news = merge(news)
        pieces = []
        for sample, output in news:
            text = self._texts[prompt * self.n + sample]
            if text.done:
                continue  # sent before the engine heard of the stop string
            finish = output.finish
            if finish is not None and (finish.reason == "error" or finish.status >= 400):
                raise from_engine(finish, self.job.prompts[prompt].constraint_field)
            if output.cached_tokens is not None:
                self._tally.started(text.index, prompt, output)
                if output.prompt_logprobs is not None:
                    self.prompt_logprobs.setdefault(prompt, output.prompt_logprobs)
            before = text.num_tokens
            piece = text.push(output)
            self._tally.tokens(text.index, text.num_tokens - before, now)
            self._tally.text(text.index, piece.text)
            if text.done:
                self._finish(prompt, sample, text, piece)
            pieces.append(piece)
        return pieces

    def stop(self, index: int) -> None:
        """Sequence `index` has said what was wanted of it: the engine need not go on."""
        text, (prompt, sample) = self._texts[index], divmod(index, self.n)
        if text.done:
            return
        text.done = True
        self._open -= 1
        self._tally.finished(index, text.num_tokens, "stop")
        stream = self._streams[prompt]
        assert stream is not None, "it has answered"
        stream.abort(sample)

    def _finish(self, prompt: int, sample: int, text: SequenceText, piece: Piece) -> None:
        self._open -= 1
        self._tally.finished(text.index, text.num_tokens, piece.finish_reason)
        if text.stopped:
            self._streams[prompt].abort(sample)


def merge(news: Sequence[tuple[int, SequenceOutput]]) -> list[tuple[int, SequenceOutput]]:
    """One output for each sequence: a reader that is behind sends one chunk, not many."""
    merged: dict[int, SequenceOutput] = {}
    for sample, output in news:
        into = merged.get(sample)
        if into is None:
            merged[sample] = output
            continue
        merged[sample] = SequenceOutput(
            output.uid,
            into.token_ids + output.token_ids,
            output.finish,
            into.logprobs + output.logprobs if into.logprobs and output.logprobs else into.logprobs or output.logprobs,
            output.cached_tokens if into.cached_tokens is None else into.cached_tokens,
            into.prompt_logprobs or output.prompt_logprobs,
            into.timing or output.timing,
        )
    return list(merged.items())
