"""Bounds on constraints that cost next to nothing to check. What they let through still has to compile in time (`sandbox.py`)."""

from __future__ import annotations

import json
import re
from typing import Any

from raysgl.grammar.interface import GrammarError
from raysgl.sampling.constraint import Constraint

MAX_BYTES = 256 * 1024
MAX_DEPTH = 64
"""Nested brackets. The libraries recurse."""
MAX_REPETITION = 10_000
"""Of one `{n,m}`. llguidance takes 0.3 s for the first mask of `a{2000000000}`."""
MAX_DIVISOR = 100_000
"""Digits of multipleOf, as a whole number: its automaton has a state for each remainder. 1000003 takes 5 s to compile."""

_REPETITION = re.compile(r"(?<!\\)\{\s*(\d*)\s*(?:,\s*(\d*)\s*)?\}")
_OPENING, _CLOSING = "([{", ")]}"


def check(constraint: Constraint) -> None:
    """GrammarError if the constraint is larger or deeper than any that has a use."""
    text = constraint.text
    size = len(text.encode())
    if size > MAX_BYTES:
        raise GrammarError(f"it has {size} bytes, but at most {MAX_BYTES} are allowed")
    if constraint.kind == "regex":
        _check_pattern(text)
    elif constraint.kind == "ebnf":
        _check_nesting(text)
        _check_repetitions(text)
    else:
        try:
            data = json.loads(text)
        except RecursionError:
            raise GrammarError(f"it is nested deeper than {MAX_DEPTH} levels") from None
        except ValueError as error:
            raise GrammarError(f"it is not JSON: {error}") from None
        _check_json(data, 0)


def _check_pattern(pattern: str) -> None:
    _check_nesting(pattern)
    _check_repetitions(pattern)


def _check_nesting(text: str) -> None:
    depth = 0
    for char in text:
        if char in _OPENING:
            depth += 1
            if depth > MAX_DEPTH:
                raise GrammarError(f"it has brackets nested deeper than {MAX_DEPTH} levels")
        elif char in _CLOSING and depth:
            depth -= 1


def _check_repetitions(text: str) -> None:
    for bounds in _REPETITION.finditer(text):
        for bound in bounds.groups():
            if bound and (len(bound) > 9 or int(bound) > MAX_REPETITION):
                raise GrammarError(f"it repeats something {bound[:20]} times, but at most {MAX_REPETITION} are allowed")


def _check_json(value: Any, depth: int) -> None:
    if depth > 4 * MAX_DEPTH:  # a level of the schema is two of its JSON
        raise GrammarError(f"it is nested deeper than {4 * MAX_DEPTH} levels")
    if isinstance(value, list):
        for item in value:
            _check_json(item, depth + 1)
    elif isinstance(value, dict):
        for key, item in value.items():
            if key == "pattern" and isinstance(item, str):
                _check_pattern(item)
            elif key == "patternProperties" and isinstance(item, dict):
                for pattern in item:
                    _check_pattern(pattern)
            elif key == "multipleOf" and isinstance(item, (int, float)) and not isinstance(item, bool):
                _check_divisor(item)
            _check_json(item, depth + 1)


def _check_divisor(divisor: float) -> None:
    digits = re.sub(r"\D", "", f"{divisor:f}".rstrip("0").rstrip(".") if divisor % 1 else str(int(divisor)).rstrip("0"))
    if digits and int(digits) > MAX_DIVISOR:
        raise GrammarError(f"multipleOf is {divisor!r}, but its digits must be at most {MAX_DIVISOR}")
