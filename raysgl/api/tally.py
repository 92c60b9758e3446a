"""Counts one generation: into the usage that its answer shows, its model's metrics, and its `Call`."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import msgspec

from raysgl.api.call import Call
from raysgl.api.metric_table import ModelStats
from raysgl.api.request_log import keeps_text
from raysgl.messages import SequenceOutput

if TYPE_CHECKING:
    from raysgl.api.generation import Job


class Usage(msgspec.Struct):
    """Token counts so far. Every prompt counts once, whatever n is."""

    prompt_tokens: int
    completion_tokens: int = 0
    cached_tokens: int = 0
    reasoning_tokens: int = 0


class Tally:
    """Told of everything that happens to the sequences, numbered prompt * n + sample.

    lengths: tokens of each prompt. cached: how much of each was in the cache; None: not known yet. Times are time.perf_counter().
    """

    def __init__(self, stats: ModelStats, call: Call, lengths: list[int], n: int, arrived_at: float):
        self.usage = Usage(sum(lengths))
        self.cached: list[int | None] = [None] * len(lengths)
        self.reasoning = [0] * (len(lengths) * n)
        """Tokens of each sequence that are reasoning."""
        self._stats, self._call, self._lengths, self._arrived_at = stats, call, lengths, arrived_at
        self._ended_at = 0.0
        self._first_at = [0.0] * (len(lengths) * n)
        self._last_at = [0.0] * (len(lengths) * n)
        self._prefill = [0.0] * (len(lengths) * n)

    def submitted(self, job: Job) -> None:
        """ApiError 429 if the key has not so many tokens left."""
        self._stats.requests += 1
        self._call.begin(job.model.name, self.usage.prompt_tokens, job)
        if keeps_text():
            self._call.texts = [[] for _ in self._last_at]

    def routed(self) -> None:
        """All prompts have a replica."""
        self._call.routed_at = time.perf_counter()

    def text(self, index: int, text: str) -> None:
        if self._call.texts is not None:
            self._call.texts[index].append(text)

    def started(self, index: int, prompt: int, output: SequenceOutput) -> None:
        """A sequence's first output. The n sequences of a prompt share it: the one that found least of it in the cache is the one
        that computed it."""
        if output.timing is not None:
            queued, self._prefill[index] = output.timing
            self._stats.queue.add(queued)
            self._stats.prefill.add(self._prefill[index])
            self._call.engine_times(queued, self._prefill[index])
        known = self.cached[prompt]
        if known is None:
            self._stats.prompt_tokens += self._lengths[prompt]
            self._stats.prompt_lengths.add(self._lengths[prompt])
        if known is None or output.cached_tokens < known:
            self.usage.cached_tokens += output.cached_tokens - (known or 0)
            self._stats.cached_tokens += output.cached_tokens - (known or 0)
            self.cached[prompt] = output.cached_tokens

    def tokens(self, index: int, new: int, now: float) -> None:
        """So many new tokens came at once."""
        if not new:
            return
        self.usage.completion_tokens += new
        self._stats.generation_tokens += new
        last = self._last_at[index]
        self._last_at[index] = now
        if last:
            self._stats.itl.add((now - last) / new, new)
        else:
            self._first_at[index] = now
            self._call.first_token_at = self._call.first_token_at or now
            self._stats.ttft.add(now - self._arrived_at)

    def reasoned(self, index: int, num_tokens: int) -> None:
        """So many of a sequence's tokens so far are reasoning."""
        self.usage.reasoning_tokens += num_tokens - self.reasoning[index]
        self.reasoning[index] = num_tokens

    def finished(self, index: int, num_tokens: int, reason: str) -> None:
        """A sequence ended, in a way that is no error."""
        stats = self._stats
        self._ended_at = time.perf_counter()
        self._call.finish_reasons.append(reason)
        stats.finished[reason] += 1
        stats.answer_lengths.add(num_tokens)
        if reason == "abort":
            stats.aborted += 1
        decode = self._last_at[index] - self._first_at[index]
        if num_tokens > 1:
            stats.tpot.add(decode / (num_tokens - 1))
        stats.decode.add(decode)
        stats.inference.add(decode + self._prefill[index])

    def closed(self, unfinished: int) -> None:
        """The request is over, with so many sequences that had not ended."""
        if unfinished:
            self._stats.aborted += 1
        else:
            self._stats.e2e.add(self._ended_at - self._arrived_at)
        for length, cached in zip(self._lengths, self.cached):
            if cached is not None:
                self._stats.uncached_lengths.add(length - cached)
        self._call.generated_at = max(self._last_at)
        self._call.end(self.usage.completion_tokens, self.usage.cached_tokens)
