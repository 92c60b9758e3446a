"""What the engine knows of grammars. Legend: R rows, W words of 32 bits, bit i of a row is token i (little-endian)."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from raysgl.sampling.constraint import Constraint


class GrammarError(ValueError):
    """A constraint that cannot be followed; the message says why, and is for the client."""


@dataclass
class CompilerStats:
    """compiled: constraints, refused ones among them, which took `seconds` together. hits: found compiled."""

    compiled: int = 0
    refused: int = 0
    hits: int = 0
    seconds: float = 0.0


class Matcher(Protocol):
    """Where one sequence is in its grammar."""

    def accept(self, token: int) -> bool:
        """Go on by a token. False, and of no further use, if the grammar does not allow it."""

    def ended(self) -> bool:
        """The text is complete, and nothing may follow."""

    def error(self) -> str | None:
        """Why it is of no further use: the grammar was too complex at this place."""


class Grammar(Protocol):
    """A compiled constraint."""

    num_bytes: int
    """About how much memory it takes."""

    def matcher(self) -> Matcher:
        """At the beginning."""


class Grammars(Protocol):
    """What compiles constraints and computes masks."""

    eos_token_ids: tuple[int, ...]
    """Tokens whose bits say that the text may end here."""
    special_token_ids: frozenset[int]
    """Tokens that are no text."""
    num_words: int
    """W"""
    stats: CompilerStats

    def compile(self, constraint: Constraint) -> Future[Grammar]:
        """Returns at once; the future has a `GrammarError` where the constraint is refused."""

    def fill(self, matchers: Sequence[Matcher], bits_RW: np.ndarray) -> None:
        """Row i becomes what `matchers[i]` allows now. int32, contiguous. Look at their `error` afterwards."""
