"""Conversations made of random tokens or words, of given lengths, with what they share. One request is a conversation of one turn."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from raysgl.bench.dialects import Part
from raysgl.bench.load import TEXT

FIRST_ID, LAST_ID = 1000, 40000
"""Ids of prompts: within the vocabulary of any model of interest, clear of special tokens."""

Draw = Callable[[random.Random, int], Part]
"""Makes so many random tokens."""


@dataclass(frozen=True)
class Turn:
    """What a turn adds to the prompt, and how many tokens its answer should have."""

    part: Part
    output: int


Conversation = list[Turn]


@dataclass(frozen=True)
class Lengths:
    """Evenly distributed whole numbers."""

    least: int
    most: int

    @classmethod
    def parse(cls, text: str) -> Lengths:
        """`128`, or a range: `64:256`. Raises ValueError."""
        least, _, most = text.partition(":")
        try:
            found = cls(int(least), int(most or least))
        except ValueError:
            raise ValueError(f"{text!r} is not a number of tokens (128), or a range of them (64:256)") from None
        if not 1 <= found.least <= found.most:
            raise ValueError(f"{text!r}: lengths are at least 1, and the first of a range is not above its second")
        return found

    @classmethod
    def exactly(cls, count: int) -> Lengths:
        return cls(count, count)

    def draw(self, source: random.Random) -> int:
        return self.least if self.least == self.most else source.randint(self.least, self.most)

    def __str__(self) -> str:
        return str(self.least) if self.least == self.most else f"{self.least} to {self.most}"


@dataclass(frozen=True)
class Shape:
    """`count` conversations. own: tokens that each turn adds; output: of each answer; turns: of each conversation, history resent.

    shared: the first turns begin with so many tokens that others begin with too; groups: so many different ones of these.
    """

    count: int
    own: Lengths
    output: Lengths
    shared: int = 0
    groups: int = 1
    turns: int = 1

    @property
    def requests(self) -> int:
        return self.count * self.turns


def make(shape: Shape, draw: Draw, seed: str) -> list[Conversation]:
    """The same for the same seed; groups are shuffled."""
    source = random.Random(seed)
    prefixes = [draw(source, shape.shared) for _ in range(shape.groups)]
    made = []
    for i in range(shape.count):
        first = prefixes[i % len(prefixes)] + draw(source, shape.own.draw(source))  # type: ignore[operator]
        turns = [Turn(first, shape.output.draw(source))]
        turns += [Turn(draw(source, shape.own.draw(source)), shape.output.draw(source)) for _ in range(shape.turns - 1)]
        made.append(turns)
    source.shuffle(made)
    return made


def ids(source: random.Random, count: int) -> list[int]:
    """Random token ids."""
    return [source.randrange(FIRST_ID, LAST_ID) for _ in range(count)]


def words(source: random.Random, count: int) -> str:
    """Random common words, each of them one token, or little more, of any tokenizer."""
    return "".join(f"{word} " for word in source.choices(_WORDS, k=count))


_WORDS = sorted({word.strip(".,;").lower() for word in TEXT.split()})
