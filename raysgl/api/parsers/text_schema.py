"""Strings that a JSON schema allows, as a terminal of a Lark grammar: for arguments that stand as plain text."""

from __future__ import annotations

from typing import Any

from raysgl.api.parsers.argument_text import DEPTH, target
from raysgl.grammar.lark import ANY, Lark, quoted

MOST = 10_000
"""Characters: more are not counted. A text that must be shorter than a longer bound is kept shorter than this."""
_DAY = r"(?:(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])|(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)|02-(?:0[1-9]|1[0-9]|2[0-8]))"
_DATE = r"[0-9]{4}-" + _DAY
_TIME = r"(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](?:\.[0-9]{1,6})?(?:Z|[+-](?:[01][0-9]|2[0-3]):[0-5][0-9])"
_BYTE = r"(?:25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])"
_HOST = r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?(?:\.[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?){0,4}"
FORMATS = {
    "date": _DATE,
    "date-time": f"{_DATE}T{_TIME}",
    "email": r"[A-Za-z0-9_+-]+(?:\.[A-Za-z0-9_+-]+)*@" + _HOST,
    "hostname": _HOST,
    "ipv4": rf"{_BYTE}(?:\.{_BYTE}){{3}}",
    "time": _TIME,
    "uri": r"[a-z][a-z0-9+.-]*:\/\/" + _HOST + r"(?::[0-9]{1,4})?(?:\/[A-Za-z0-9._~\/-]*)?(?:\?[A-Za-z0-9._~\/=&-]*)?",
    "uuid": r"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}",
}
"""Of strings, as regular expressions between slashes. Not all that the format allows, but nothing else."""
_UNSUPPORTED = ("not", "if", "$dynamicRef", "$recursiveRef")


def string_terminal(lark: Lark, schema: Any, root: dict[str, Any], stops: tuple[str, ...]) -> str | None:
    """None if the schema allows no string, or none without one of `stops`. ValueError says what is not supported, TypeError what is no
    schema.

    root: the schema that references start from.
    """
    return _terminal(lark, schema, root, stops, DEPTH)


def _terminal(lark: Lark, schema: Any, root: dict[str, Any], stops: tuple[str, ...], depth: int) -> str | None:
    if not depth:
        raise ValueError("its schema is nested too deep")
    if isinstance(schema, bool):
        return ANY if schema else None
    if not isinstance(schema, dict):
        raise TypeError("its schema is no object")
    kind = schema.get("type", "string")
    if kind != "string" and not (isinstance(kind, list) and "string" in kind):
        return None
    parts = _own(lark, schema, stops)
    for word in _UNSUPPORTED:
        if word in schema:
            raise ValueError(f"the keyword {word} is not supported for strings that stand between tags")
    if "$ref" in schema:
        parts.append(_terminal(lark, target(schema["$ref"], root), root, stops, depth - 1))
    parts += [_terminal(lark, inner, root, stops, depth - 1) for inner in schema.get("allOf", ())]
    for word in ("anyOf", "oneOf"):
        if word in schema:
            found = [_terminal(lark, inner, root, stops, depth - 1) for inner in schema[word]]
            options = [terminal for terminal in found if terminal is not None]
            if word == "oneOf" and len(options) > 1:
                raise ValueError("oneOf has more than one kind of string")
            parts.append(" | ".join(options) if options else None)
    if any(part is None for part in parts):
        return None
    return " & ".join(f"({part})" for part in parts) or ANY


def _own(lark: Lark, schema: dict[str, Any], stops: tuple[str, ...]) -> list[str | None]:
    """What the keywords for strings say, one terminal for each."""
    parts: list[str | None] = []
    if "enum" in schema or "const" in schema:
        values = schema["enum"] if "enum" in schema else [schema["const"]]
        texts = [text for text in values if isinstance(text, str) and not any(stop in text for stop in stops)]
        parts.append(" | ".join(map(quoted, texts)) or None)
    if "pattern" in schema:
        if not isinstance(schema["pattern"], str):
            raise TypeError("pattern must be a string")
        parts.append(lark.pattern(schema["pattern"]))
    fewest, most = schema.get("minLength", 0), schema.get("maxLength")
    if fewest > MOST:
        raise ValueError(f"minLength may be at most {MOST} here")
    if fewest or most is not None:
        parts.append(f"/(?s:.{{{int(fewest)},{'' if most is None else min(int(most), MOST)}}})/")
    if "format" in schema:
        if schema["format"] not in FORMATS:
            raise ValueError(f"format must be one of {', '.join(FORMATS)} here")
        parts.append(f"/{FORMATS[schema['format']]}/")
    return parts
