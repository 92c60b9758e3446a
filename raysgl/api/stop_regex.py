"""Finds the end of a text by regular expressions, in text that arrives in pieces, and holds back what may become a match.

Partial matching (of the `regex` package) says where a match may begin that more text would complete. Both the text that is looked
at and the time that a look takes are bounded, so no pattern can hold up other requests for long.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Protocol

import regex

from raysgl.api.errors import bad_request
from raysgl.api.stop_strings import StopMatcher
from raysgl.sampling.params import SamplingParams

MAX_PATTERN_BYTES = 256
MAX_MATCH = 1024
"""Characters that are held back at most: longer matches are not found."""
CONTEXT = 64
"""Characters before what is held back that lookbehinds and word boundaries can see."""
TIMEOUT_S = 0.1


class Matcher(Protocol):
    """What finds the end of a sequence's text. After it has been found, `matched` says what it was and nothing may be pushed."""

    matched: str | None

    def push(self, text: str) -> str:
        """The text that can be shown now."""

    def flush(self) -> str:
        """The text ended: the rest of what can be shown."""


def stop_patterns(patterns: str | list[str] | None) -> tuple[str, ...]:
    """A request's `stop_regex`, checked. ApiError 400."""
    given = (patterns,) if isinstance(patterns, str) else tuple(patterns or ())
    for pattern in given:
        if len(pattern.encode()) > MAX_PATTERN_BYTES:
            raise bad_request(f"stop_regex must have patterns of at most {MAX_PATTERN_BYTES} bytes", "stop_regex")
        try:
            matches_nothing = compiled(pattern).search("", timeout=TIMEOUT_S) is not None
        except (regex.error, TimeoutError, OverflowError, RecursionError) as error:
            raise bad_request(f"stop_regex has {pattern[:100]!r}: {error}", "stop_regex") from None
        if matches_nothing:
            raise bad_request(f"stop_regex has {pattern[:100]!r}, which matches the empty text", "stop_regex")
    return given


@lru_cache(maxsize=256)
def compiled(pattern: str) -> regex.Pattern:
    return regex.compile(pattern)


def matcher_of(sampling: SamplingParams) -> Matcher | None:
    """What the settings ask to look for."""
    strings = StopMatcher(sampling.stop, sampling.no_stop_trim) if sampling.stop else None
    if not sampling.stop_regex:
        return strings
    patterns = RegexMatcher(sampling.stop_regex, sampling.no_stop_trim)
    return Both(strings, patterns) if strings is not None else patterns


class RegexMatcher:
    """One sequence's search. `matched` is the pattern. ApiError 400 where a pattern takes too long."""

    def __init__(self, patterns: tuple[str, ...], keep_stop: bool = False):
        self._patterns = [(pattern, compiled(pattern)) for pattern in patterns]
        self._keep = keep_stop
        self._before = self._held = ""
        self.matched: str | None = None

    def push(self, text: str) -> str:
        if not text:
            return ""
        seen = self._before + self._held + text
        begin = len(self._before)
        hold, found = len(seen), None
        for pattern, program in self._patterns:
            try:
                match = program.search(seen, begin, partial=True, timeout=TIMEOUT_S)
            except TimeoutError:
                raise bad_request(f"stop_regex has {pattern[:100]!r}, which takes too long to match", "stop_regex") from None
            if match is None:
                continue
            if match.partial:
                hold = min(hold, match.start())
            elif found is None or match.start() < found.start():
                found, self.matched = match, pattern
        if found is not None:
            self._held = ""
            return seen[begin : found.end() if self._keep else found.start()]
        hold = max(hold, len(seen) - MAX_MATCH, begin)
        self._held = seen[hold:]
        self._before = seen[max(0, hold - CONTEXT) : hold]
        return seen[begin:hold]

    def flush(self) -> str:
        held, self._held = self._held, ""
        return held


class Both:
    """Stop strings first; what they let through is searched for patterns."""

    def __init__(self, strings: StopMatcher, patterns: RegexMatcher):
        self._strings, self._patterns = strings, patterns
        self.matched: str | None = None

    def push(self, text: str) -> str:
        shown = self._patterns.push(self._strings.push(text))
        self.matched = self._patterns.matched
        if self.matched is None and self._strings.matched is not None:
            self.matched = self._strings.matched
            shown += self._patterns.flush()
        return shown

    def flush(self) -> str:
        shown = self._patterns.push(self._strings.flush())
        self.matched = self._patterns.matched
        return shown if self.matched is not None else shown + self._patterns.flush()
