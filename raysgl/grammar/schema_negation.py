"""Schemas for values that another schema does not allow: some of the ways to miss it, each of them certain to."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from raysgl.grammar.schema_refs import Schema
from raysgl.grammar.schema_values import others, type_of

if TYPE_CHECKING:
    from raysgl.grammar.schema_rewrite import Rewriter


MOST_NAMES = 50


def no(rewriter: Rewriter, schema: Schema, base: str) -> Schema:
    """False where no way is known."""
    from raysgl.grammar.schema_rewrite import any_of

    schema, base = rewriter.enter(schema, base)
    if isinstance(schema, bool):
        return not schema
    return any_of(
        [
            *_plain(schema),
            *_of_lists(rewriter, schema, base),
            *_of_objects(rewriter, schema, base),
            *_joined(rewriter, schema, base),
        ]
    )


def _plain(schema: dict[str, Any]) -> Iterable[Schema]:
    if "type" in schema:
        yield others(set(schema["type"]) if isinstance(schema["type"], list) else {schema["type"]})
    if "enum" in schema:
        yield from _none_of(schema["enum"])
    if "const" in schema:
        yield from _none_of([schema["const"]])
    for key, missed in (
        ("minimum", "exclusiveMaximum"),
        ("maximum", "exclusiveMinimum"),
        ("exclusiveMinimum", "maximum"),
        ("exclusiveMaximum", "minimum"),
    ):
        if key in schema:
            yield {"type": "number", missed: schema[key]}
    for kind, what in (("string", "Length"), ("array", "Items")):
        if schema.get("min" + what, 0) > 0:
            yield {"type": kind, "max" + what: int(schema["min" + what]) - 1}
        if "max" + what in schema:
            yield {"type": kind, "min" + what: int(schema["max" + what]) + 1}


def _none_of(values: list[Any]) -> Iterable[Schema]:
    yield others({type_of(value) for value in values})
    of = {kind: [value for value in values if type_of(value) == kind] for kind in map(type_of, values)}
    if "string" in of:
        yield {"type": "string", "pattern": f"^{_other_texts(of['string'])}$"}
    if "number" in of:
        yield {"type": "number", "exclusiveMinimum": max(of["number"])}
        yield {"type": "number", "exclusiveMaximum": min(of["number"])}
    if len(set(of.get("boolean", ()))) == 1:
        yield {"const": not of["boolean"][0]}
    if "array" in of:
        yield {"type": "array", "minItems": max(map(len, of["array"])) + 1}
    if "object" in of:
        names = {name for value in of["object"] for name in value}
        yield {"type": "object", "required": [new_name(names)]}


def _of_lists(rewriter: Rewriter, schema: dict[str, Any], base: str) -> Iterable[Schema]:
    prefix = schema.get("prefixItems", [])
    for place, inner in enumerate(prefix):
        yield _item(place, rewriter.no(inner, base))
    if "items" in schema:
        yield _item(len(prefix), rewriter.no(schema["items"], base))
    if "contains" in schema and schema.get("minContains", 1) > 0:
        yield {"type": "array", "items": rewriter.no(schema["contains"], base)}
    if schema.get("uniqueItems") is True:
        yield {"type": "array", "prefixItems": [{"const": 0}, {"const": 0}], "minItems": 2}


def _item(place: int, schema: Schema) -> Schema:
    """Lists with an item of the schema there."""
    return schema is not False and {"type": "array", "prefixItems": [*[True] * place, schema], "minItems": place + 1}


def _of_objects(rewriter: Rewriter, schema: dict[str, Any], base: str) -> Iterable[Schema]:
    from raysgl.grammar.schema_rewrite import dependencies

    for name, inner in schema.get("properties", {}).items():
        yield _property(name, rewriter.no(inner, base))
    if schema.get("minProperties", 0) > 0:
        yield {"type": "object", "maxProperties": int(schema["minProperties"]) - 1}
    if "maxProperties" in schema:  # by name: of those that have none, one may come twice
        names = list(schema.get("properties", ()))
        while len(names) <= min(schema["maxProperties"], MOST_NAMES):
            names.append(new_name(names))
        yield len(names) > schema["maxProperties"] and {"type": "object", "required": names[: int(schema["maxProperties"]) + 1]}
    for name in schema.get("required", ()):
        yield {"type": "object", "properties": {name: False}}
    if "additionalProperties" in schema and not schema.get("patternProperties"):
        yield _property(new_name(schema.get("properties", {})), rewriter.no(schema["additionalProperties"], base))
    for name, needed in dependencies(schema, list):
        for other in needed:
            yield {"type": "object", "required": [name], "properties": {other: False}}


def _property(name: str, schema: Schema) -> Schema:
    """Objects with such a property."""
    return schema is not False and {"type": "object", "properties": {name: schema}, "required": [name]}


def _joined(rewriter: Rewriter, schema: dict[str, Any], base: str) -> Iterable[Schema]:
    from raysgl.grammar.schema_rewrite import all_of

    if "$ref" in schema or "$dynamicRef" in schema:
        yield rewriter.reference(schema, base, False)
    if "not" in schema:
        yield rewriter.yes(schema["not"], base)
    for inner in schema.get("allOf", ()):
        yield rewriter.no(inner, base)
    for key in ("anyOf", "oneOf"):
        if key in schema:
            yield all_of([rewriter.no(inner, base) for inner in schema[key]])
    options = schema.get("oneOf", ())
    for at, one in enumerate(options):
        for another in options[at + 1 :]:
            yield all_of([rewriter.yes(one, base), rewriter.yes(another, base)])
    for condition, then, otherwise in rewriter.choices(schema):
        yield all_of([rewriter.yes(condition, base), rewriter.no(then, base)])
        yield all_of([rewriter.no(condition, base), rewriter.no(otherwise, base)])


def new_name(names: Iterable[str]) -> str:
    """A property's name that is none of these."""
    taken, name = set(names), "other"
    while name in taken:
        name += "_"
    return name


def escaped(text: str) -> str:
    """The text as a pattern."""
    return re.sub(r"[.*+?^$|(){}\[\]\\/-]", r"\\\g<0>", text)


def _other_texts(texts: list[str]) -> str:
    """A regular expression for all but these, letter by letter."""
    if not texts:
        return r"[\s\S]*"
    following = {text[0]: [other[1:] for other in texts if other[:1] == text[0]] for text in texts if text}
    ways = [escaped(char) + _other_texts(rest) for char, rest in following.items()]
    ways.append((f"[^{''.join(map(escaped, following))}]" if following else r"[\s\S]") + r"[\s\S]*")
    if "" not in texts:
        ways.append("")
    return f"({'|'.join(ways)})"
