"""How answers look on the wire. A stream is chunks of pieces; a whole answer is the same pieces put together.

Chunks are formatted by hand around constant bytes, since a chunk is made for every token: about 1 µs instead of 50 for a
pydantic model. `chat_answer.py` and `completion_answer.py` have the two shapes.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import orjson

from raysgl.api import extras
from raysgl.api.errors import ApiError
from raysgl.api.extras import Extras
from raysgl.api.generation import Generation, Prompt
from raysgl.api.parsers.events import Event, ReasoningDelta, TextDelta, ToolCallArguments, ToolCallStart
from raysgl.api.parsers.registry import OutputParser
from raysgl.api.sequence_text import Entry, Piece
from raysgl.api.tokenizer import Tokenizer
from raysgl.messages import TokenLogprob

DONE = b"data: [DONE]\n\n"


@dataclass(slots=True)
class Style:
    """What the request asked of the answer's form. model: what the client called it. source: the request of another API that
    the chat was made from. parser: makes what reads a choice's text; None: the text is all there is."""

    model: str
    logprobs: bool = False
    top_logprobs: int = 0
    echo: bool = False
    include_usage: bool = False
    continuous_usage: bool = False
    source: Any = None
    extras: Extras = field(default_factory=Extras)
    parser: Callable[[], OutputParser] | None = None


@dataclass(slots=True)
class Call:
    """A whole tool call. `arguments` are JSON, in pieces."""

    id: str
    name: str
    arguments: list[str] = field(default_factory=list)


@dataclass(slots=True)
class Collected:
    """A whole choice."""

    text: list[str] = field(default_factory=list)
    reasoning: list[str] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)
    entries: list[Entry] = field(default_factory=list)
    finish_reason: str | None = None
    matched_stop: int | str | None = None
    token_ids: list[int] = field(default_factory=list)
    last: Piece | None = None

    def add(self, piece: Piece, events: list[Event], finish_reason: str | None) -> None:
        for event in events:
            match event:
                case TextDelta(text):
                    self.text.append(text)
                case ReasoningDelta(text):
                    self.reasoning.append(text)
                case ToolCallStart(_, id, name):
                    self.calls.append(Call(id, name))
                case ToolCallArguments(index, text):
                    self.calls[index].arguments.append(text)
        self.entries += piece.entries
        self.finish_reason, self.matched_stop = finish_reason, piece.matched_stop
        self.token_ids += piece.token_ids
        self.last = piece


class Answer(ABC):
    """One request's answer. Subclasses say what a chunk and a choice look like."""

    object: str
    chunk_object: str
    nothing_new: bytes
    """A chunk's choice behind its index, where there is nothing to show."""
    prompt_beside_choices: bool
    """Whether what is said of the one prompt stands beside the choices, not in them."""

    def __init__(self, style: Style, generation: Generation):
        self.style = style
        self.generation = generation
        self.tokenizer: Tokenizer = generation.job.model.tokenizer
        self.created = int(time.time())
        self._collected: dict[int, Collected] = {}
        self._started: set[int] = set()
        """Choices that have had their first chunk."""
        self._parsers: dict[int, OutputParser] = {}
        self._calling: set[int] = set()
        """Choices with a tool call."""
        model, request_id = orjson.dumps(style.model), orjson.dumps(generation.job.request_id)
        self._head = b'data: {"id":%b,"object":"%b","created":%d,"model":%b,"choices":[' % (
            request_id,
            self.chunk_object.encode(),
            self.created,
            model,
        )

    @abstractmethod
    def chunks(self, pieces: list[Piece]) -> bytes:
        """The pieces as server-sent events; nothing for pieces that show nothing."""

    @abstractmethod
    def choice(self, index: int, collected: Collected) -> dict[str, Any]:
        """A finished choice of a whole answer."""

    def events(self, piece: Piece) -> list[Event]:
        """What a piece's text stands for. Asked once for each piece, in order. It becomes the last one where its choice is whole."""
        if self.style.parser is None:
            return [TextDelta(piece.text)] if piece.text else []
        parser = self._parsers.get(piece.index)
        if parser is None:
            parser = self._parsers[piece.index] = self.style.parser()
        events = parser.feed(piece.text) if piece.text else []
        if piece.finish_reason is not None:
            events += parser.finish()
        elif parser.over:
            piece.finish_reason = "stop"
            self.generation.stop(piece.index)
        if parser.reasoning:
            self.generation.reasoned(piece.index, parser.reasoning)
        if any(isinstance(event, ToolCallStart) for event in events):
            self._calling.add(piece.index)
        return events

    def finish_reason(self, piece: Piece) -> str | None:
        """Why the choice is over, once the piece's events are known."""
        return "tool_calls" if piece.finish_reason == "stop" and piece.index in self._calling else piece.finish_reason

    def last_chunks(self) -> bytes:
        """The end of a stream."""
        if not self.style.include_usage:
            return DONE
        more = b""
        if self.style.extras.cached_tokens_details:
            more = b',"sglext":' + orjson.dumps(extras.cached_tokens_details(self.generation))
        return self._head + b'],"usage":' + self.usage() + more + b"}\n\n" + DONE

    def choice_head(self, index: int) -> bytes:
        """How each chunk of a choice begins."""
        return self._head + b'{"index":%d' % index

    def prompt_of(self, index: int) -> Prompt:
        """The prompt of a choice."""
        return self.generation.job.prompts[index // self.generation.n]

    def failed(self, error: ApiError) -> bytes:
        """The end of a stream that has begun and cannot go on."""
        return error.event()

    def collect(self, pieces: list[Piece]) -> None:
        """Keep pieces for `whole`."""
        for piece in pieces:
            events = self.events(piece)
            self._collected.setdefault(piece.index, Collected()).add(piece, events, self.finish_reason(piece))

    def whole(self) -> bytes:
        """The body of a whole answer, once all sequences have finished."""
        return orjson.dumps(
            {
                "id": self.generation.job.request_id,
                "object": self.object,
                "created": self.created,
                "model": self.style.model,
                "choices": [
                    self.choice(index, said) | extras.of_choice(self, index, said.token_ids, said.last)
                    for index, said in sorted(self._collected.items())
                ],
                "usage": orjson.Fragment(self.usage()),
                "metadata": {"weight_version": self.generation.weight_version(0)},
            }
            | extras.of_answer(self)
        )

    def usage(self) -> bytes:
        usage = self.generation.usage
        reasoning = usage.reasoning_tokens
        return (
            b'{"prompt_tokens":%d,"total_tokens":%d,"completion_tokens":%d,"prompt_tokens_details":{"cached_tokens":%d},'
            b'"reasoning_tokens":%d,"completion_tokens_details":%b}'
            % (
                usage.prompt_tokens,
                usage.prompt_tokens + usage.completion_tokens,
                usage.completion_tokens,
                usage.cached_tokens,
                reasoning,
                b'{"reasoning_tokens":%d}' % reasoning if reasoning else b"null",
            )
        )

    def tail(self) -> bytes:
        """What ends a chunk behind its choice."""
        return b'],"usage":' + self.usage() + b"}\n\n" if self.style.continuous_usage else b'],"usage":null}\n\n'

    def top(self, logprob: TokenLogprob) -> list[tuple[int, float]]:
        return logprob.top[: self.style.top_logprobs]
