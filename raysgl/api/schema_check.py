"""Whether a value can be a JSON Schema (draft 2020-12), as far as shapes go: fast enough for every tool of every request.

The metaschema itself, in Python, takes 8 ms for a schema of ten properties. What a schema's keywords mean is the grammar's business.
"""

from __future__ import annotations

from typing import Any

TYPES = frozenset({"array", "boolean", "integer", "null", "number", "object", "string"})
_SCHEMA = ("additionalProperties", "contains", "contentSchema", "else", "if", "items", "not", "propertyNames", "then")
_SCHEMAS = ("allOf", "anyOf", "oneOf", "prefixItems")
_NAMED = ("$defs", "definitions", "dependentSchemas", "patternProperties", "properties")
_STRING = ("$anchor", "$id", "$ref", "$schema", "description", "format", "pattern", "title")
_NUMBER = ("exclusiveMaximum", "exclusiveMinimum", "maximum", "minimum", "multipleOf")
_COUNT = ("maxItems", "maxLength", "maxProperties", "minItems", "minLength", "minProperties")


def schema_problem(schema: Any) -> str | None:
    """What is wrong with it, in words that begin with the place; None if nothing is."""
    rest: list[tuple[str, Any]] = [("it", schema)]
    while rest:
        place, found = rest.pop()
        if isinstance(found, bool):
            continue
        if not isinstance(found, dict):
            return f"{place} must be an object, true or false"
        for key, value in found.items():
            if value is None:  # some clients' way to leave a keyword out
                continue
            where = key if place == "it" else f"{place}.{key}"
            if (wanted := _wanted(key, value)) is not None:
                return f"{where} must be {wanted}"
            if key in _SCHEMA and not (key == "items" and isinstance(value, list)):
                rest.append((where, value))
            elif key in _SCHEMAS or key == "items":
                rest += [(f"{where}.{i}", inner) for i, inner in enumerate(value)]
            elif key in _NAMED:
                rest += [(f"{where}.{name}", inner) for name, inner in value.items()]
    return None


def _wanted(key: str, value: Any) -> str | None:
    """What a keyword's value must be, where it is not."""
    if key == "type":
        kinds = value if isinstance(value, list) else [value]
        if not kinds or not all(isinstance(kind, str) and kind in TYPES for kind in kinds):
            return f"one of {', '.join(sorted(TYPES))}, or a list of them"
    elif key in _NAMED and not isinstance(value, dict):
        return "an object"
    elif (key in _SCHEMAS and not (isinstance(value, list) and value)) or (key == "enum" and not isinstance(value, list)):
        return "a list" if key == "enum" else "a list that is not empty"
    elif key == "required" and not (isinstance(value, list) and all(isinstance(name, str) for name in value)):
        return "a list of strings"
    elif key in _STRING and not isinstance(value, str):
        return "a string"
    elif key in _NUMBER and (isinstance(value, bool) or not isinstance(value, (int, float))):
        return "a number"
    elif key in _COUNT and (isinstance(value, bool) or not isinstance(value, (int, float)) or value < 0 or value % 1):
        return "a whole number of at least 0"
    return None
