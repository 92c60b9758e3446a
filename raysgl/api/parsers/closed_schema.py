"""A schema whose objects have only the members that it names.

JSON Schema lets objects have any others unless it says no, which few tools do and none mean: a small model that may go on with members of
its own does, to the end of its tokens. (xgrammar's strict mode, which SGLang and vLLM use, closes objects too.)
"""

from __future__ import annotations

from typing import Any

_INSIDE = ("items", "additionalProperties")
_LISTS = ("anyOf", "oneOf", "prefixItems")
_NAMED = ("properties", "$defs", "definitions")
_SAYS = frozenset(
    {"additionalProperties", "unevaluatedProperties", "patternProperties", "allOf", "anyOf", "oneOf", "$ref", "if", "not"}
)
"""Where one of these stands beside properties, other members are the schema's business."""


def closed(schema: Any) -> Any:
    """A copy. Where parts of a schema hold together (allOf), nothing is closed: each would forbid what the others name."""
    return schema if _joins(schema) else _closed(schema)


def _closed(schema: Any) -> Any:
    if not isinstance(schema, dict):
        return schema
    found = dict(schema)
    for key in _INSIDE:
        if key in found:
            found[key] = _closed(found[key])
    for key in _LISTS:
        if isinstance(found.get(key), list):
            found[key] = [_closed(inner) for inner in found[key]]
    for key in _NAMED:
        if isinstance(found.get(key), dict):
            found[key] = {name: _closed(inner) for name, inner in found[key].items()}
    properties, required = found.get("properties"), found.get("required", [])
    names_all = isinstance(properties, dict) and isinstance(required, list) and all(name in properties for name in required)
    if names_all and not _SAYS & found.keys():
        found["additionalProperties"] = False
    return found


def _joins(schema: Any) -> bool:
    """Whether there is an allOf, or a reference beside other keywords about members."""
    if isinstance(schema, list):
        return any(map(_joins, schema))
    if not isinstance(schema, dict):
        return False
    return "allOf" in schema or ("$ref" in schema and "properties" in schema) or any(map(_joins, schema.values()))
