"""Shapes of JSON Schemas: what the metaschema refuses for its shape is refused, what it accepts never is."""

from __future__ import annotations

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raysgl.api.schema_check import schema_problem

WRONG = [
    ({"type": "objekt"}, "type"),
    ({"type": []}, "type"),
    ({"properties": []}, "properties"),
    ({"properties": {"a": {"type": 5}}}, "properties.a.type"),
    ({"properties": {"a": "string"}}, "properties.a"),
    ({"required": "a"}, "required"),
    ({"required": [1]}, "required"),
    ({"items": {"anyOf": []}}, "items.anyOf"),
    ({"anyOf": [{}, {"enum": 1}]}, "anyOf.1.enum"),
    ({"additionalProperties": {"minLength": -1}}, "additionalProperties.minLength"),
    ({"$defs": {"x": {"maximum": "5"}}}, "$defs.x.maximum"),
    ({"$ref": 1}, "$ref"),
]


@pytest.mark.parametrize(("schema", "place"), WRONG)
def test_what_is_wrong_is_named(schema, place):
    assert schema_problem(schema).startswith(f"{place} must be ")
    with pytest.raises(jsonschema.SchemaError):
        jsonschema.Draft202012Validator.check_schema(schema)


def test_what_clients_send_is_accepted():
    assert schema_problem({"type": "object", "properties": {"a": {"type": ["string", "null"], "description": None}}}) is None
    assert schema_problem({"items": [{"type": "string"}, True], "x-own": {"type": "objekt"}}) is None
    assert schema_problem({"enum": ["a", {"type": 1}], "default": {"type": 1}}) is None


keywords = st.sampled_from(
    ["type", "properties", "required", "items", "anyOf", "enum", "const", "minimum", "minItems", "$ref", "not", "title", "x"]
)
values = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 2) | st.sampled_from(["string", "object", "a"]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(keywords, inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(keywords, values, max_size=4))
def test_no_valid_schema_is_refused(schema):
    try:
        jsonschema.Draft202012Validator.check_schema(schema)
    except jsonschema.SchemaError:
        schema_problem(schema)
        return
    assert schema_problem(schema) is None


def test_depth_does_not_matter():
    """JSON that is nested deeper is refused before."""
    deep: dict = {"type": 1}
    for _ in range(1024):
        deep = {"not": deep}
    assert schema_problem(deep).startswith("not.not.not")
