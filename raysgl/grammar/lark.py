"""A grammar that is put together rule by rule: `Constraint` of the kind lark. Legend: an *expression* is what may stand in a rule."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

import orjson

from raysgl.sampling.constraint import Constraint

ANY = "/(?s:.*)/"
"""A terminal: any text. The complement of a terminal may be no UTF-8, so it is joined with this."""


class Lark:
    """Rules, and what stands for them elsewhere. special: texts that are one special token -> its id; inside of other texts they are
    written as that token, never letter by letter."""

    def __init__(self, special: Mapping[str, int] | None = None):
        self.special = dict(special or {})
        self._cut = re.compile("(" + "|".join(map(re.escape, sorted(self.special, key=len, reverse=True))) + ")")
        self._rules: list[str] = []
        self._schemas: dict[str, Any] = {}
        self._patterns: dict[str, Any] = {}

    def rule(self, name: str, expression: str, lazy: bool = False) -> str:
        """The name. lazy: of a terminal, which ends as soon as it can."""
        self._rules.append(f"{name}{'[lazy]' if lazy else ''}: {expression}")
        return name

    def name(self, kind: str) -> str:
        """One that no rule has yet."""
        return f"{kind}_{len(self._rules)}"

    def literal(self, text: str) -> str:
        """The expression for just this text."""
        parts = self._cut.split(text) if self.special else [text]
        found = [f"<[{self.special[part]}]>" if part in self.special else quoted(part) for part in parts if part]
        return " ".join(found) or '""'

    def json(self, schema: Any) -> str:
        """The expression for JSON texts of a schema."""
        name = f"json_{len(self._schemas)}"
        self._schemas[name] = schema
        return name

    def pattern(self, pattern: str) -> str:
        """The terminal for texts in which a schema's `pattern` is found."""
        name = f"PATTERN_{len(self._patterns)}"
        self._patterns[name] = {"pattern": pattern}
        return name

    def whole(self, pattern: str) -> str:
        """The terminal for texts that match a regular expression from end to end."""
        name = f"PATTERN_{len(self._patterns)}"
        self._patterns[name] = {"pattern": pattern, "whole": True}
        return name

    def text_until(self, terminal: str, end: str) -> str:
        """The expression for a text of the terminal and then `end`, which does not occur in it."""
        text = self.rule(self.name("TEXT"), terminal)
        if any(end.startswith(special) for special in self.special):
            return f"{text} {self.literal(end)}"
        return self.rule(self.name("text"), self.rule(self.name("UNTIL"), f"{text} {quoted(end)}"), lazy=True)

    def constraint(self, start: str) -> Constraint:
        parts = {"rules": "\n".join([f"start: {start}", *self._rules]), "schemas": self._schemas, "patterns": self._patterns}
        return Constraint("lark", json.dumps(parts))


def quoted(text: str) -> str:
    return orjson.dumps(text).decode()


def escaped(text: str) -> str:
    """The text inside of a regular expression between slashes."""
    return "".join("\\" + char if char in r"\.+*?()|[]{}^$/" else "\\n" if char == "\n" else char for char in text)


def without(texts: tuple[str, ...]) -> str:
    """The terminal for any text in which none of these occur."""
    return f"{ANY} & ~/(?s:.*)({'|'.join(map(escaped, texts))})(?s:.*)/" if texts else ANY
