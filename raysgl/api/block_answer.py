"""Answers of APIs whose answer is a list of blocks: reasoning, texts, tool calls. One choice, in the order it was generated.

Anthropic's content blocks and the Responses API's output items are such. A subclass says what opens, grows and closes a block
in a stream, and what the whole looks like; a whole answer is made of the same blocks.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from raysgl.api.answers import Answer, Collected, Style
from raysgl.api.generation import Generation
from raysgl.api.parsers.events import ReasoningDelta, TextDelta, ToolCallArguments, ToolCallStart
from raysgl.api.sequence_text import Entry, Piece


@dataclass(slots=True)
class Block:
    """`text` is a tool call's arguments as JSON; `entries` are the log probabilities of a text."""

    kind: Literal["reasoning", "text", "tool_call"]
    index: int
    id: str = ""
    name: str = ""
    parts: list[str] = field(default_factory=list)
    entries: list[Entry] = field(default_factory=list)

    @property
    def text(self) -> str:
        return "".join(self.parts)


@dataclass(slots=True)
class Step:
    """What happens to a block. `text` and `entries` are what is new, where it grows."""

    kind: Literal["open", "grow", "close"]
    block: Block
    text: str = ""
    entries: list[Entry] = field(default_factory=list)


class BlockAnswer(Answer):
    object = chunk_object = ""
    never_empty = False
    """Whether an answer without any text has a text block."""

    def __init__(self, style: Style, generation: Generation):
        super().__init__(style, generation)
        self.blocks: list[Block] = []
        self.ended: str | None = None
        """Why, once it is over."""
        self.matched_stop: int | str | None = None
        self._begun = False
        self._open: Block | None = None
        self._entries: list[Entry] = []
        """Of tokens whose text is held back."""

    @abstractmethod
    def begin(self) -> bytes:
        """The stream's first events."""

    @abstractmethod
    def step(self, step: Step) -> bytes:
        """A block's events."""

    @abstractmethod
    def end(self) -> bytes:
        """The stream's last events."""

    def chunks(self, pieces: list[Piece]) -> bytes:
        out = [] if self._begun else [self.begin()]
        self._begun = True
        for piece in pieces:
            out += map(self.step, self._steps(piece))
        if self.ended is not None:
            out.append(self.end())
        return b"".join(out)

    def choice(self, index: int, collected: Collected) -> dict[str, Any]:
        raise NotImplementedError("an answer of blocks has no choices")

    def last_chunks(self) -> bytes:
        return b""

    def collect(self, pieces: list[Piece]) -> None:
        for piece in pieces:
            for _ in self._steps(piece):
                pass

    def _steps(self, piece: Piece) -> Iterator[Step]:
        self._entries += piece.entries
        for event in self.events(piece):
            match event:
                case ReasoningDelta(text):
                    yield from self._grow("reasoning", text)
                case TextDelta(text):
                    yield from self._grow("text", text)
                case ToolCallStart(_, id, name):
                    yield from self._begin_block(Block("tool_call", len(self.blocks), id, name))
                case ToolCallArguments(_, text):
                    yield from self._grow("tool_call", text)
        if piece.finish_reason is not None:
            self.ended, self.matched_stop = self.finish_reason(piece), piece.matched_stop
            if self.never_empty and not self.blocks:
                yield from self._begin_block(Block("text", 0))
            yield from self._close()

    def _grow(self, kind: Literal["reasoning", "text", "tool_call"], text: str) -> Iterator[Step]:
        if self._open is None or self._open.kind != kind:
            yield from self._begin_block(Block(kind, len(self.blocks)))
        block = self._open
        entries: list[Entry] = []
        if kind == "text":
            entries, self._entries = self._entries, []
        block.parts.append(text)
        block.entries += entries
        yield Step("grow", block, text, entries)

    def _begin_block(self, block: Block) -> Iterator[Step]:
        yield from self._close()
        self._open = block
        self.blocks.append(block)
        yield Step("open", block)

    def _close(self) -> Iterator[Step]:
        if self._open is not None:
            yield Step("close", self._open)
            self._open = None
