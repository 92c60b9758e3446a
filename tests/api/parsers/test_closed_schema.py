"""Which objects are closed, and which are left as they are."""

from __future__ import annotations

import jsonschema
import pytest

from raysgl.api.parsers.closed_schema import closed

A = {"properties": {"a": {"type": "integer"}}}
CLOSED = {**A, "additionalProperties": False}


@pytest.mark.parametrize(
    ("schema", "expected"),
    [
        (A, CLOSED),
        ({"properties": {}}, {"properties": {}, "additionalProperties": False}),
        ({"items": A}, {"items": CLOSED}),
        ({"anyOf": [A, {"type": "null"}]}, {"anyOf": [CLOSED, {"type": "null"}]}),
        ({"$ref": "#/$defs/A", "$defs": {"A": A}}, {"$ref": "#/$defs/A", "$defs": {"A": CLOSED}}),
        ({"additionalProperties": A}, {"additionalProperties": CLOSED}),
    ],
)
def test_closed(schema, expected):
    assert closed(schema) == expected
    jsonschema.Draft202012Validator.check_schema(closed(schema))


@pytest.mark.parametrize(
    "schema",
    [
        {},
        True,
        {"type": "object"},
        {**A, "additionalProperties": True},
        {**A, "required": ["b"]},
        {**A, "patternProperties": {"^x": {}}},
        {"allOf": [A, {"properties": {"b": {}}}]},
        {"$ref": "#/$defs/A", "properties": {"b": {}}, "$defs": {"A": A}},
        {"properties": {"properties": {"enum": [{"properties": {}}]}}, "anyOf": [{"required": ["properties"]}]},
        {"default": A, "enum": [A]},
    ],
)
def test_left_as_it_is(schema):
    assert closed(schema) == schema
