"""Arguments that a model writes as plain text, made JSON by the tool's parameter schema."""

from __future__ import annotations

import json
from typing import Any

import orjson

from raysgl.api.parsers import json_text
from raysgl.api.parsers.output import Output
from raysgl.api.parsers.python_text import ERRORS, json_of
from raysgl.api.parsers.reader import SPACES, Reader, Wait

KINDS: dict[str, tuple[type, ...]] = {
    "null": (type(None),),
    "boolean": (bool,),
    "integer": (int,),
    "number": (int, float),
    "array": (list,),
    "object": (dict,),
}
DEPTH = 16
"""Of schemas in schemas that are looked at for types."""


class Arguments:
    """The arguments' object, written member by member. parameters: the tool's schema, {} for an unknown tool."""

    def __init__(self, output: Output, parameters: dict[str, Any]):
        self._output, self._parameters = output, parameters
        self._empty = True

    def read(
        self, reader: Reader, name: str, ends: tuple[str, ...], lines: bool, is_string: bool | None = None
    ) -> Wait[str | None]:
        """Read a member's value up to a tag, which is the result. A string goes on as it comes.

        lines: a line break at either end is not part of the value. is_string: what the model says of it.
        """
        types = types_of(self._parameters, name)
        if is_string is not None and (is_string or types == {"string"}):
            types = {"string"} if is_string else set(KINDS)
        if lines:
            yield from _line_break(reader)
        key = ("{" if self._empty else ", ") + orjson.dumps(name).decode() + ": "
        self._empty = False
        if types == {"string"}:
            self._output.arguments(key + '"')
            text = _Escaped(self._output, lines)
            end = yield from reader.until(ends, text.write)
            text.close()
            return end
        parts: list[str] = []
        if types & {"array", "object"}:
            yield from _brackets(reader, parts)
        end = yield from reader.until(ends, parts.append)
        value = "".join(parts)
        self._output.arguments(key + as_json(value.removesuffix("\n") if lines else value, types))
        return end

    def close(self) -> None:
        self._output.arguments("{}" if self._empty else "}")


class _Escaped:
    """A sink for a string's text. lines: a last line break is left out."""

    def __init__(self, output: Output, lines: bool):
        self._output, self._lines = output, lines
        self._held = ""

    def write(self, text: str) -> None:
        text = self._held + text
        self._held = "\n" if self._lines and text.endswith("\n") else ""
        self._output.arguments(orjson.dumps(text[: len(text) - len(self._held)])[1:-1].decode())

    def close(self) -> None:
        self._output.arguments('"')


def _brackets(reader: Reader, parts: list[str]) -> Wait[None]:
    """A list or an object as a whole, if one is here: its strings may have tags in them."""
    reader.mark()
    parts.append((yield from reader.spaces()))
    if (yield from reader.peek()) in ("[", "{") and (yield from json_text.value(reader, parts.append)):
        reader.release()
    else:
        reader.rewind()
        parts.clear()


def _line_break(reader: Reader) -> Wait[None]:
    yield from reader.one_of("\r\n", "\n")


def as_json(text: str, types: set[str]) -> str:
    """A value's text as JSON of one of the types, preferring others than string; text that fits none is a string."""
    found = _reading(text.strip(SPACES)) if types != {"string"} else None
    if found is not None:
        value, written = found
        if any(type(value) in KINDS[kind] for kind in types - {"string"}):
            return written
        if isinstance(value, float) and "integer" in types and value.is_integer():
            return str(int(value))
    return orjson.dumps(text).decode()


def _reading(text: str) -> tuple[Any, str] | None:
    """What the text means, and JSON for it: it is JSON itself, or Python's way to write it. None if it is neither."""
    low = text.lower()
    for read in (lambda: text, lambda: json_of(text) if text.startswith(("[", "{")) else "null" if low == "none" else low):
        try:
            written = read()
            return json.loads(written, parse_constant=_no_constant), written
        except ERRORS:
            continue
    return None


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def types_of(parameters: dict[str, Any], name: str) -> set[str]:
    """Of a parameter. Nothing known: string."""
    properties = parameters.get("properties")
    schema = properties.get(name) if isinstance(properties, dict) else None
    found = _types_of(schema, parameters, DEPTH) & {*KINDS, "string"}
    return found or {"string"}


def _types_of(schema: Any, root: dict[str, Any], depth: int) -> set[str]:
    if not isinstance(schema, dict) or not depth:
        return set()
    kind = schema.get("type")
    found = {kind} if isinstance(kind, str) else {k for k in kind if isinstance(k, str)} if isinstance(kind, list) else set()
    if not found:
        values = schema["enum"] if isinstance(schema.get("enum"), list) else [schema["const"]] if "const" in schema else []
        found = {_kind_of(value) for value in values}
    if not found:
        found = {kind for kind, word in (("object", "properties"), ("array", "items")) if word in schema}
    for word in ("anyOf", "oneOf", "allOf"):
        for inner in schema.get(word) or () if isinstance(schema.get(word), list) else ():
            found |= _types_of(inner, root, depth - 1)
    if isinstance(schema.get("$ref"), str):
        found |= _types_of(target(schema["$ref"], root), root, depth - 1)
    return found


def _kind_of(value: Any) -> str:
    return next((kind for kind, types in KINDS.items() if type(value) in types), "string")


def target(ref: str, root: dict[str, Any]) -> Any:
    """What a reference inside the schema refers to."""
    found: Any = root
    for part in ref.removeprefix("#").split("/")[1:]:
        found = found.get(part.replace("~1", "/").replace("~0", "~")) if isinstance(found, dict) else None
    return found if ref.startswith("#") else None
