"""Text that arrives in pieces, read as if it were all there.

Parsers are generators over a `Reader`. Where they need more text they wait, with `yield`; what they decide depends on the text alone and
never on where it was cut, so a streamed answer and a whole one cannot differ.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import TypeVar

T = TypeVar("T")
Wait = Generator[None, None, T]
Sink = Callable[[str], None]

SPACES = " \t\r\n"


class Reader:
    """What has arrived and was not taken. After `close` nothing more arrives."""

    def __init__(self) -> None:
        self._text = ""
        self._at = 0
        self._mark: int | None = None
        self._closed = False
        self._gone = 0  # characters before `_text`

    @property
    def position(self) -> int:
        """How many characters of the whole text have been taken."""
        return self._gone + self._at

    def feed(self, text: str) -> None:
        kept = self._at if self._mark is None else self._mark
        if kept:
            self._text, self._at, self._gone = self._text[kept:], self._at - kept, self._gone + kept
            if self._mark is not None:
                self._mark = 0
        self._text += text

    def close(self) -> None:
        self._closed = True

    def mark(self) -> None:
        """Remember this place. There is one at a time."""
        self._mark = self._at

    def release(self) -> None:
        """There is no way back to the mark any more."""
        self._mark = None

    def rewind(self) -> None:
        """Back to the mark, which is gone then."""
        assert self._mark is not None
        self._at, self._mark = self._mark, None

    def unread(self, tag: str) -> None:
        """Give back what was just taken."""
        self._at -= len(tag)

    def take(self) -> str:
        """All that is there."""
        text, self._at = self._text[self._at :], len(self._text)
        return text

    def more(self) -> Wait[bool]:
        """Wait for text. False where nothing more comes."""
        if self._closed:
            return False
        yield
        return True

    def peek(self, count: int = 1) -> Wait[str]:
        """The next characters, fewer only at the end."""
        while len(self._text) - self._at < count and (yield from self.more()):
            pass
        return self._text[self._at : self._at + count]

    def skip(self, count: int) -> None:
        """Take characters that `peek` has shown."""
        self._at += count

    def one_of(self, *tags: str) -> Wait[str | None]:
        """Take whichever tag the text goes on with. None if it is none of them; waits only as long as it may be one."""
        while True:
            rest = self._text[self._at : self._at + max(map(len, tags))]
            if any(len(rest) < len(tag) and tag.startswith(rest) for tag in tags) and (yield from self.more()):
                continue
            found = max((tag for tag in tags if rest.startswith(tag)), key=len, default=None)
            if found is not None:
                self._at += len(found)
            return found

    def run_of(self, chars: str) -> Wait[str]:
        """Take all of these characters that come next."""
        parts = []
        while True:
            rest = self._text[self._at :]
            run = rest[: len(rest) - len(rest.lstrip(chars))]
            self._at += len(run)
            parts.append(run)
            if len(run) < len(rest) or not (yield from self.more()):
                return "".join(parts)

    def spaces(self) -> Wait[str]:
        return (yield from self.run_of(SPACES))

    def until(self, tags: tuple[str, ...], sink: Sink) -> Wait[str | None]:
        """Take a tag, and give what is before it to `sink` as it comes. None where the text ends without one.

        Only what may be the beginning of a tag is held back. Of tags that overlap the one that begins first counts, then the longest.
        """
        while True:
            begin, found = self._first(tags)
            held = self._held(tags)
            if found is not None and (begin < held or self._closed):
                if begin > self._at:
                    sink(self._text[self._at : begin])
                self._at = begin + len(found)
                return found
            if self._closed:
                if rest := self.take():
                    sink(rest)
                return None
            if held > self._at:
                sink(self._text[self._at : held])
                self._at = held
            yield

    def _first(self, tags: tuple[str, ...]) -> tuple[int, str | None]:
        best, found = len(self._text), None
        for tag in tags:
            begin = self._text.find(tag, self._at)
            if begin >= 0 and (begin < best or (begin == best and found is not None and len(tag) > len(found))):
                best, found = begin, tag
        return best, found

    def _held(self, tags: tuple[str, ...]) -> int:
        """Where text begins that may become a tag; the end, if nothing does."""
        text = self._text
        for begin in range(max(self._at, len(text) - max(map(len, tags), default=0) + 1), len(text)):
            rest = text[begin:]
            if any(len(tag) > len(rest) and tag.startswith(rest) for tag in tags):
                return begin
        return len(text)


def drop(text: str) -> None:
    """A sink for what nobody wants."""
