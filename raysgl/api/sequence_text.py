"""One sequence on its way to the client: tokens in; text, log probabilities and the end out.

The same pieces make a stream's chunks and, put together, a whole answer.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from dataclasses import dataclass, field

from raysgl.api.detokenizer import detokenizer
from raysgl.api.stop_regex import matcher_of
from raysgl.api.tokenizer import Tokenizer
from raysgl.messages import SequenceOutput, TokenLogprob
from raysgl.sampling.params import SamplingParams


@dataclass(slots=True)
class Entry:
    """A token's log probability and where its text begins, in characters of the sequence's text."""

    logprob: TokenLogprob
    start: int


@dataclass(slots=True)
class Piece:
    """What is new about a sequence. `finish_reason` is None until its last piece.

    token_ids: those that count as generated, shown or not; `logprobs` theirs, where the request asked for any. They go out as they
    come; text, and the entries that belong to it, may be held back for a stop string. message: why it was aborted.
    """

    index: int
    text: str = ""
    entries: list[Entry] = field(default_factory=list)
    finish_reason: str | None = None
    matched_stop: int | str | None = None
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] | None = None
    message: str = ""
    retractions: int = 0


class SequenceText:
    """Detokenises one sequence and looks for stop strings.

    num_tokens: tokens that count as generated; after a stop string was found, those up to the one that completed it.
    stopped: a stop string was found, so that the engine should be told to abort the sequence.
    done: its last piece is out; nothing more may be pushed.
    kept: special tokens that are shown whatever the settings say, since a parser reads them.
    placed: remembers where each token begins, for `tokens_in`.
    """

    def __init__(
        self,
        index: int,
        tokenizer: Tokenizer,
        sampling: SamplingParams,
        kept: frozenset[int] = frozenset(),
        placed: bool = False,
    ):
        self.index = index
        self.num_tokens = 0
        self.done = self.stopped = False
        self._detokenizer = detokenizer(tokenizer, sampling.skip_special_tokens, kept=kept)
        self._matcher = matcher_of(sampling)
        self._sampling = sampling
        self._decoded = 0  # characters of text known, held back or not
        self._released = 0
        self._entries: list[Entry] = []  # not released yet
        self._starts: array[int] | None = array("I") if placed else None

    def push(self, output: SequenceOutput) -> Piece:
        """Takes what the engine sent. Its `finish` must be no error."""
        before = self.num_tokens
        piece = self._push(output)
        count = self.num_tokens - before
        ids, logprobs = output.token_ids, output.logprobs
        piece.token_ids = ids if count == len(ids) else ids[:count]
        piece.logprobs = logprobs if logprobs is None or count == len(logprobs) else logprobs[:count]
        if output.finish is not None:
            piece.message, piece.retractions = output.finish.message, output.finish.retractions
        return piece

    def tokens_in(self, spans: list[tuple[int, int | None]]) -> int:
        """How many tokens begin in these parts of the text; None: to its end."""
        starts = self._starts
        assert starts is not None
        return sum(
            (len(starts) if end is None else bisect_left(starts, end)) - bisect_left(starts, begin) for begin, end in spans
        )

    def _push(self, output: SequenceOutput) -> Piece:
        finish = output.finish
        ids, hidden = output.token_ids, 0
        if finish is not None and finish.reason == "stop" and ids and ids[-1] == finish.matched:
            hidden = 0 if self._sampling.no_stop_trim else 1  # the stop token counts, but is not shown
        shown = len(ids) - hidden
        logprobs = output.logprobs
        if self._matcher is None and logprobs is None and self._starts is None:
            push = self._detokenizer.push
            text = push(ids[0]) if shown == 1 else "".join([push(token) for token in ids[:shown]])
            self.num_tokens += len(ids)
            if finish is None:
                return Piece(self.index, text)
        else:
            text = ""
            for i in range(shown):
                text += self._push_one(ids[i], logprobs[i] if logprobs else None)
                if self.stopped:
                    return self._end(text, "stop", self._matcher.matched)
            self.num_tokens += hidden
        if finish is None:
            return self._piece(text)
        tail = self._detokenizer.flush()
        self._decoded += len(tail)
        if self._matcher is not None:
            tail = self._matcher.push(tail)
            if self._matcher.matched is not None:
                return self._end(text + tail, "stop", self._matcher.matched)
            tail += self._matcher.flush()
            if self._matcher.matched is not None:
                return self._end(text + tail, "stop", self._matcher.matched)
        return self._end(text + tail, finish.reason, finish.matched)

    def _push_one(self, token: int, logprob: TokenLogprob | None) -> str:
        self.num_tokens += 1
        if self._starts is not None:
            self._starts.append(self._decoded)
        if logprob is not None:
            self._entries.append(Entry(logprob, self._decoded))
        text = self._detokenizer.push(token)
        self._decoded += len(text)
        if self._matcher is None or self.num_tokens <= self._sampling.min_new_tokens:
            return text
        text = self._matcher.push(text)
        self.stopped = self._matcher.matched is not None
        return text

    def _piece(self, text: str) -> Piece:
        """Entries go with their token's first character, and not before: a stop string may still swallow it."""
        if not self._sampling.logprobs:
            return Piece(self.index, text)
        self._released += len(text)
        if self._released == self._decoded and not self._detokenizer.pending:
            entries, self._entries = self._entries, []
        else:
            count = sum(entry.start < self._released for entry in self._entries)
            entries, self._entries = self._entries[:count], self._entries[count:]
        return Piece(self.index, text, entries)

    def _end(self, text: str, reason: str, matched: int | str | None) -> Piece:
        self.done = True
        self._released += len(text)
        entries = self._entries
        if self.stopped:
            entries = [entry for entry in entries if entry.start < self._released]
        self._entries = []
        return Piece(self.index, text, entries, reason, matched)
