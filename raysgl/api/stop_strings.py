"""Finds stop strings in text that arrives in pieces, and holds back what may become one.

An Aho-Corasick automaton over the stop strings: its state is the longest end of the text that begins a stop string, so the
held-back text is exactly what may still become one, and the answer does not depend on how the text was cut into pieces.
The match that is complete first wins; of several that end together, the longest.
"""

from __future__ import annotations

from functools import lru_cache

MAX_STOP_LENGTH = 1024
"""Characters of a stop string: building the automaton takes about 1 µs each."""


class StopStrings:
    """The automaton. Immutable; shared between requests with the same stop strings."""

    def __init__(self, stops: tuple[str, ...]):
        self.stops = stops
        self.goto: list[dict[str, int]] = [{}]
        self.depth = [0]
        self.match: list[int] = [-1]
        """For each state, the longest stop string that ends there: an index into `stops`, or -1."""
        for index, stop in enumerate(stops):
            state = 0
            for char in stop:
                state = self.goto[state].get(char) or self._grow(state, char)
            if self.match[state] < 0:
                self.match[state] = index
        self.fail = [0] * len(self.goto)
        self._link()
        self.first_chars = frozenset(self.goto[0])

    def _grow(self, state: int, char: str) -> int:
        self.goto[state][char] = new = len(self.goto)
        self.goto.append({})
        self.depth.append(self.depth[state] + 1)
        self.match.append(-1)
        return new

    def _link(self) -> None:
        """Breadth first: where a state falls back to when no longer stop string fits."""
        queue = list(self.goto[0].values())
        for state in queue:
            for char, child in self.goto[state].items():
                self.fail[child] = self.step(self.fail[state], char)
                if self.match[child] < 0:
                    self.match[child] = self.match[self.fail[child]]
                queue.append(child)

    def step(self, state: int, char: str) -> int:
        while True:
            following = self.goto[state].get(char)
            if following is not None:
                return following
            if not state:
                return 0
            state = self.fail[state]


@lru_cache(maxsize=128)
def automaton(stops: tuple[str, ...]) -> StopStrings:
    return StopStrings(stops)


class StopMatcher:
    """One sequence's search. After `push` found a stop string, `matched` is it and nothing more may be pushed."""

    def __init__(self, stops: tuple[str, ...], keep_stop: bool = False):
        self._automaton = automaton(stops)
        self._state = 0
        self._held = ""
        self._keep = keep_stop
        self.matched: str | None = None

    def push(self, text: str) -> str:
        """The text that can be shown now."""
        auto = self._automaton
        state = self._state
        if not state and auto.first_chars.isdisjoint(text):
            return text
        for i, char in enumerate(text):
            state = auto.step(state, char)
            if auto.match[state] >= 0:
                self.matched = auto.stops[auto.match[state]]
                shown = self._held + text[: i + 1]
                self._held = ""
                return shown if self._keep else shown[: len(shown) - len(self.matched)]
        self._state = state
        shown = self._held + text
        cut = len(shown) - auto.depth[state]
        self._held = shown[cut:]
        return shown[:cut]

    def flush(self) -> str:
        """The text ended: what was held back is no stop string."""
        held, self._held, self._state = self._held, "", 0
        return held
