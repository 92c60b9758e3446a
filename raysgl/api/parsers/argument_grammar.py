"""What a call's arguments may look like, as a grammar: JSON, a Python call's keywords, or texts between tags.

Whatever the grammar lets through, the format's parser reads as an object that the parameters' schema allows. It may let through less:
properties come in the schema's order, and those that the schema does not name do not come where they are not JSON.
"""

from __future__ import annotations

import keyword
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from raysgl.api.errors import ApiError, bad_request
from raysgl.api.parsers.argument_text import types_of
from raysgl.api.parsers.text_schema import string_terminal
from raysgl.api.parsers.tool_format import TextArguments
from raysgl.grammar.lark import Lark, without

READ_AS = {
    "null": r"(?i:null|none)",
    "boolean": r"(?i:true|false)",
    "integer": r"[-+.0-9](?s:.*)",
    "number": r"[-+.0-9](?s:.*)",
    "array": r"\[(?s:.*)",
    "object": r"\{(?s:.*)",
}
"""Texts that may be no string where a value of this type is possible too (see `argument_text.as_json`)."""
MOST_KEYWORDS = 100
"""Of a Python call: with each one left out or not, the grammar grows with their square."""
_NAME = re.compile(r"[^\s<>\"=](?:[^<>\"=\n]*[^\s<>\"=])?")
_HARMLESS = {
    "type",
    "properties",
    "required",
    "additionalProperties",
    "unevaluatedProperties",
    "$defs",
    "definitions",
    "$schema",
    "$id",
}
_HARMLESS |= {
    "title",
    "description",
    "default",
    "examples",
    "deprecated",
    "readOnly",
    "writeOnly",
    "$comment",
    "strict",
    "x-guidance",
}


@dataclass(frozen=True)
class Member:
    """A parameter that has a schema of its own."""

    name: str
    schema: Any
    required: bool


def json_arguments(lark: Lark, tool: str, parameters: dict[str, Any]) -> str:
    return lark.json(as_object(tool, parameters))


def python_arguments(lark: Lark, tool: str, parameters: dict[str, Any]) -> str:
    """`a=1, b="x"`, the values as JSON, which the parser understands."""
    parts = []
    members = _members(tool, parameters)
    if len(members) > MOST_KEYWORDS:
        raise _refused(tool, f"it has {len(members)} parameters, but in this format at most {MOST_KEYWORDS} can be constrained")
    for member in members:
        if member.name.isidentifier() and member.name.isascii() and not keyword.iskeyword(member.name):
            parts.append(
                (lark.literal(member.name + "=") + " " + lark.json(_located(member.schema, parameters)), member.required)
            )
        elif member.required:
            raise _refused(tool, f"the parameter {member.name!r} is no name in Python")
    return _listed(lark, parts)


def text_arguments(lark: Lark, tool: str, parameters: dict[str, Any], style: TextArguments) -> str:
    """Strings as they are, other values as JSON."""
    parts = []
    for member in _members(tool, parameters):
        values = list(_values(lark, tool, member, parameters, style)) if _NAME.fullmatch(member.name) else []
        if values:
            parts.append(f"({lark.literal(style.key + member.name)} ({' | '.join(values)}))" + ("" if member.required else "?"))
        elif member.required:
            raise _refused(tool, f"the parameter {member.name!r} cannot be written between tags")
    return " ".join(parts) or '""'


def as_object(tool: str, parameters: dict[str, Any]) -> dict[str, Any]:
    """The parameters' schema where it says that they are an object. ApiError 400 if it says otherwise."""
    kind = parameters.get("type", "object")
    if kind != "object" and not (isinstance(kind, list) and "object" in kind):
        raise _refused(tool, f"parameters are of the type {kind!r}, but must be an object")
    return {"type": "object"} | parameters | {"type": "object"}


# ---------------------------------------------------------------- inner


def _members(tool: str, parameters: dict[str, Any]) -> list[Member]:
    """ApiError 400 where more is said than what each property is."""
    schema = as_object(tool, parameters)
    properties, others = schema.get("properties", {}), schema.get("additionalProperties", True)
    required = schema.get("required", [])
    if not isinstance(properties, dict) or not isinstance(required, list):
        raise _refused(tool, "properties must be an object, and required a list")
    members = [Member(name, inner, name in required) for name, inner in properties.items()]
    members += [
        Member(name, others, True) for name in dict.fromkeys(required) if isinstance(name, str) and name not in properties
    ]
    for word, value in schema.items():
        fits = word == "minProperties" and isinstance(value, int) and value <= sum(member.required for member in members)
        fits = fits or (word == "maxProperties" and isinstance(value, int) and value >= len(members))
        if word not in _HARMLESS and not fits:
            raise _refused(tool, f"the keyword {word} is not supported beside properties")
    return members


def _listed(lark: Lark, parts: list[tuple[str, bool]]) -> str:
    """The parts with commas between them. A part is an expression, and whether it must be there."""
    beginnings: list[str] = []
    for at, (part, needed) in enumerate(parts):
        rest = [f"({lark.literal(', ')} {other})" + ("" if must else "?") for other, must in parts[at + 1 :]]
        beginnings.append(" ".join([part, *rest]))
        if needed:
            break
    else:
        beginnings.append('""')
    return "(" + " | ".join(beginnings) + ")"


def _values(lark: Lark, tool: str, member: Member, parameters: dict[str, Any], style: TextArguments) -> Iterator[str]:
    """Expressions for a value with the tags around it."""
    if member.schema is False:
        return
    types = types_of(parameters, member.name)
    others = sorted(types - {"string"})
    if "string" in types:
        try:
            terminal = string_terminal(lark, member.schema, parameters, style.stops)
        except (ValueError, TypeError) as error:
            raise _refused(tool, f"the parameter {member.name!r}: {error}") from None
        if terminal is not None:
            read = "".join(rf" & ~/[ \t\r\n]*({READ_AS[kind]})[ \t\r\n]*/" for kind in others)
            text = lark.text_until(f"{terminal} & {without(style.stops)}{read}", style.value_end)
            yield f"{lark.literal(style.key_end)} {text}"
    if others:
        value = lark.json(_located(member.schema, parameters, others))
        yield f"{lark.literal(style.json_key_end or style.key_end)} {value} {lark.literal(style.value_end)}"


def _located(schema: Any, root: dict[str, Any], types: list[str] | None = None) -> Any:
    """A property's schema as one of its own, of these types only."""
    if not isinstance(schema, dict):
        return schema
    found = dict(schema)
    if types is not None and types != [schema.get("type")]:
        own = schema.get("type")
        found = {"type": types, "allOf": [schema]}
        if own is not None:
            found = {**schema, "type": [kind for kind in types if kind in (own if isinstance(own, list) else [own])]}
    if "$ref" in str(root):
        found = {"allOf": [_moved(found)], "$defs": {"parameters": _moved(root)}}
    return found


def _moved(value: Any) -> Any:
    """With references to the root's parts pointing to where the root is now."""
    if isinstance(value, list):
        return [_moved(inner) for inner in value]
    if not isinstance(value, dict):
        return value
    return {
        key: "#/$defs/parameters" + inner[1:]
        if key == "$ref" and isinstance(inner, str) and inner.startswith("#")
        else _moved(inner)
        for key, inner in value.items()
    }


def _refused(tool: str, why: str) -> ApiError:
    return bad_request(f"the calls of {tool} cannot be constrained: {why}", "tools", "unsupported_parameter")
