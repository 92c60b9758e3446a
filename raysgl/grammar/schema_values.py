"""JSON values that a schema names one by one."""

from __future__ import annotations

import json
from typing import Any

from raysgl.grammar.interface import GrammarError

TYPES = ["array", "boolean", "null", "number", "object", "string"]
MOST_LISTS = 500


def type_of(value: Any) -> str:
    """Integers are numbers."""
    if isinstance(value, bool):
        return "boolean"
    if value is None:
        return "null"
    return {int: "number", float: "number", str: "string", list: "array", dict: "object"}[type(value)]


def others(types: set[str]) -> dict[str, Any] | bool:
    """The schema of all other types. An integer counts as a number."""
    taken = types | ({"number"} if "integer" in types else set())
    left = [name for name in TYPES if name not in taken]
    return {"type": left} if left else False


def differ(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether the types that they name, or the values, are others."""
    first, second = _values(one), _values(other)
    if first is not None and second is not None:
        return not {_key(value) for value in first} & {_key(value) for value in second}
    return bool(_types(one)) and bool(_types(other)) and not _types(one) & _types(other)


def _types(schema: dict[str, Any]) -> set[str]:
    kinds = schema.get("type", [])
    return {"number" if kind == "integer" else kind for kind in ([kinds] if isinstance(kinds, str) else kinds)}


def different_lists(prefix: list[Any], items: Any, fewest: int, most: float | None) -> Any:
    """What uniqueItems means beside these prefixItems, items, minItems and maxItems: lists one by one, or of one item at most."""
    places, rest = [_values(inner) for inner in prefix], _values(items)
    if any(place is None for place in places) or (rest is None and not prefix):
        if fewest > 1:
            raise GrammarError("uniqueItems with minItems is supported only for items that are named one by one")
        return {"maxItems": 1}
    lists: list[list[Any]] = [[]] if not fewest else []
    longest: list[list[Any]] = [[]]
    length = 0
    while longest and (most is None or length < most):
        values = places[length] if length < len(places) else rest
        if not values:
            break
        longest = [[*taken, value] for taken in longest for value in values if _key(value) not in map(_key, taken)]
        length += 1
        if len(lists) + len(longest) > MOST_LISTS:
            break
        lists += longest if length >= fewest else []
    if not lists:
        raise GrammarError("uniqueItems has too many lists that could be meant")
    return {"anyOf": [others({"array"}), {"enum": lists}]}


def _values(schema: Any) -> list[Any] | None:
    """All that a schema allows, if that is little."""
    if schema is False:
        return []
    if not isinstance(schema, dict):
        return None
    if "const" in schema and schema.keys() <= {"const", "type", "title", "description"}:
        return [schema["const"]]
    if "enum" in schema and schema.keys() <= {"enum", "type", "title", "description"}:
        return list(schema["enum"])
    if schema.get("type") == "boolean" and len(schema) == 1:
        return [False, True]
    return [None] if schema == {"type": "null"} else None


def _key(value: Any) -> str:
    """The same for values that are equal in JSON."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, list):
        return "[" + ",".join(map(_key, value)) + "]"
    if isinstance(value, dict):
        return "{" + ",".join(f"{json.dumps(key)}:{_key(item)}" for key, item in sorted(value.items())) + "}"
    return json.dumps(value)
