"""What a parser makes of a choice's text, collected as events."""

from __future__ import annotations

import secrets

from raysgl.api.parsers.events import Event, ReasoningDelta, TextDelta, ToolCallArguments, ToolCallStart
from raysgl.api.parsers.reader import SPACES


class Output:
    """Parsers write here. White space around reasoning and around calls belongs to the format, and is left out.

    stream_reasoning: reasoning goes out as it comes, else in one piece. max_calls: so many whole calls are all of the output; None: any
    number. num_calls: how many there are.
    """

    def __init__(self, stream_reasoning: bool = True, max_calls: int | None = None):
        self.num_calls = 0
        self.thinking = False
        """In reasoning now."""
        self.spans: list[tuple[int, int | None]] = []
        """Where in the whole text reasoning stands, with the mark that ends it; None: it has not ended."""
        self._events: list[Event] = []
        self._stream_reasoning, self._max_calls = stream_reasoning, max_calls
        self.over = False
        """Nothing that follows is part of it."""
        self._space = ""  # behind the text so far; dropped if a call follows
        self._fresh = False  # behind reasoning or a call
        self._reasoning: list[str] = []  # of which nothing is out yet

    def text(self, text: str) -> None:
        if self._fresh:
            text = text.lstrip(SPACES)
            self._fresh = not text
        said = text.rstrip(SPACES)
        if said:
            self._add(TextDelta(self._space + said))
            self._space = text[len(said) :]
        else:
            self._space += text

    def begin_reasoning(self, position: int) -> None:
        """position: how much of the whole text has been read."""
        self.spans.append((position, None))
        self.thinking = self._fresh = True
        self._space = ""

    def reasoning(self, text: str) -> None:
        if self._fresh:
            text = text.lstrip(SPACES)
            self._fresh = not text
        said = text.rstrip(SPACES)
        if not said:
            self._space += text
            return
        self._reasoning.append(self._space + said)
        self._space = text[len(said) :]
        if self._stream_reasoning:
            self._show_reasoning()

    def end_reasoning(self, position: int) -> None:
        self.spans[-1] = (self.spans[-1][0], position)
        self._show_reasoning()
        self.thinking, self._fresh, self._space = False, True, ""

    def call(self, name: str, id: str | None = None) -> None:
        """A call begins. id: default: a new one."""
        if self.num_calls == self._max_calls:
            self.over = True
        else:
            self._add(ToolCallStart(self.num_calls, id or f"call_{secrets.token_hex(12)}", name))
            self.num_calls += 1
        self._fresh, self._space = True, ""

    def arguments(self, text: str) -> None:
        """More JSON of the call that began last."""
        if text:
            self._add(ToolCallArguments(self.num_calls - 1, text))

    def end_call(self) -> None:
        """The call that began last is whole."""
        self.over = self.over or self.num_calls == self._max_calls

    def finish(self) -> None:
        """Nothing more follows."""
        if self.thinking:
            self._show_reasoning()
            self.thinking = False
        elif self._space:
            self._add(TextDelta(self._space))

    def take(self) -> list[Event]:
        """The events since the last time, neighbours of a kind as one."""
        events, self._events = self._events, []
        return events

    def _show_reasoning(self) -> None:
        if self._reasoning:
            self._add(ReasoningDelta("".join(self._reasoning)))
            self._reasoning.clear()

    def _add(self, event: Event) -> None:
        if self.over:
            return
        last = self._events[-1] if self._events else None
        match last, event:
            case (TextDelta(), TextDelta()) | (ReasoningDelta(), ReasoningDelta()):
                self._events[-1] = type(event)(last.text + event.text)
            case ToolCallArguments(), ToolCallArguments():
                self._events[-1] = ToolCallArguments(event.index, last.text + event.text)
            case _:
                self._events.append(event)
