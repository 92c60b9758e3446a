"""Keywords that are said with others: what is lost is not much, and nothing that a schema forbids is let through."""

from __future__ import annotations

import json

import jsonschema
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raysgl.grammar.interface import GrammarError
from raysgl.grammar.llguidance_backend import LLGuidance
from raysgl.grammar.schema_rewrite import rewritten
from raysgl.sampling.constraint import Constraint

from .walk import BYTES, EOS, SPECIAL

LIBRARY = LLGuidance(BYTES)
OBJECT = {"type": "object"}

SAID = [
    ({"not": {"type": ["string", "integer"]}}, [[], {}, None, True], ["a", 1]),
    ({"type": "string", "not": {"enum": ["ab", "b"]}}, ["", "a", "abc", "bb", "x\ny"], ["ab", "b"]),
    ({"type": "integer", "not": {"minimum": 3}}, [2, -7], [3]),
    (OBJECT | {"not": {"required": ["a"]}}, [{}, {"b": 1}], [{"a": 1}]),
    ({"oneOf": [{"required": ["a"]}, {"required": ["b"]}], **OBJECT}, [{"a": 1}, {"b": 1}], [{}, {"a": 1, "b": 1}]),
    ({"oneOf": [{"type": "integer"}, {"minimum": 2}], "x-guidance": {"coerce_one_of": True}}, [1], []),
    ({"oneOf": [{"type": "integer"}, {"minimum": 2}]}, [1], [3]),
    (
        OBJECT | {"properties": {"k": {"enum": ["x", "y"]}}, "if": {"properties": {"k": {"const": "x"}}}, "then": {"required": ["n"]}},
        [{"k": "x", "n": 0}, {"k": "y"}],
        [{"k": "x"}],
    ),
    ({"if": {"type": "string"}, "then": {"maxLength": 1}, "else": {"type": "null"}}, ["a", None], ["ab", 1]),
    ({"type": "array", "contains": {"const": 5}}, [[5], [5, "x", 5]], [[], [1]]),
    ({"type": "array", "contains": {"type": "integer"}, "minContains": 0, "maxContains": 1}, [[], [1, "a"], ["a", "b"]], [[1, 2]]),
    ({"type": "array", "items": {"enum": ["a", "b", "c"]}, "uniqueItems": True}, [[], ["c", "a"], ["b", "c", "a"]], [["a", "a"]]),
    ({"type": "array", "items": {"type": "string"}, "uniqueItems": True}, [[], ["a"]], [["a", "a"]]),
    ({"items": {"$ref": "#/$defs/e"}, "uniqueItems": True, "$defs": {"e": {"enum": [1, 2]}}}, [[2, 1], "x"], [[1, 1]]),
    (
        {"oneOf": [{"$ref": "#/$defs/x"}, {"$ref": "#/$defs/y"}], "not": {"type": "null"}, "$defs": {k: OBJECT | {"properties": {"k": {"const": k}, k: {}}, "required": ["k"]} for k in "xy"}},
        [{"k": "x", "x": 1}, {"k": "y", "x": 2}],
        [{"k": "z"}, None],
    ),
    (OBJECT | {"dependentRequired": {"a": ["b"]}}, [{}, {"b": 1}, {"a": 1, "b": 2}], [{"a": 1}]),
    (OBJECT | {"dependentSchemas": {"a": {"properties": {"b": {"type": "null"}}}}}, [{"b": 1}, {"a": 1, "b": None}], [{"a": 1, "b": 2}]),
    (OBJECT | {"propertyNames": {"pattern": "^[a-c]+$"}, "additionalProperties": {"type": "integer"}}, [{"abc": 1}], [{"d": 1}, {"a": "x"}]),
    (OBJECT | {"propertyNames": {"enum": ["a.b"]}}, [{"a.b": 1}], [{"axb": 1}]),
    (
        {"allOf": [OBJECT | {"properties": {"a": {"type": "integer"}}}], "properties": {"b": {}}, "unevaluatedProperties": False},
        [{"b": 1}, {"b": 0, "a": 2}],
        [{"c": 1}, {"a": "x"}],
    ),
    ({"$ref": "#/$defs/list", "unevaluatedItems": False, "$defs": {"list": {"type": "array", "prefixItems": [{"const": 1}]}}}, [[], [1]], [[1, 2]]),
    ({"type": "array", "items": {"$dynamicRef": "#n"}, "$defs": {"x": {"$dynamicAnchor": "n", "type": "null"}}}, [[None]], [[1]]),
    ({"not": {"$ref": "#/$defs/t"}, "$defs": {"t": {"type": "object", "additionalProperties": {"$ref": "#/$defs/t"}}}}, [1, {"other": 1}], [{}]),
    ({"type": "string", "format": "json-pointer"}, ["/a/b", ""], []),
    ({"type": "string", "format": "password", "not": {"const": ""}}, ["anything"], [""]),
    ({"type": "array", "maxItems": 1.0, "not": {"const": 1}}, [[1]], [[1, 2]]),
    ({"$schema": "http://json-schema.org/draft-07/schema#", **OBJECT, "dependencies": {"a": ["b"]}}, [{"a": 1, "b": 1}], [{"a": 1}]),
    ({"$schema": "http://json-schema.org/draft-07/schema#", "items": [{"const": 1}], "additionalItems": False, "not": {}}, [], [[1]]),
]  # fmt: skip
"""A schema, values that must still be possible, and values that it forbids."""


@pytest.mark.parametrize(("schema", "allowed", "forbidden"), SAID, ids=[json.dumps(schema)[:60] for schema, *_ in SAID])
def test_what_is_let_through(schema, allowed, forbidden):
    try:
        grammar = compiled(schema)
    except GrammarError:
        assert not allowed
        return
    validator = jsonschema.validators.validator_for(schema)(schema)
    for value, good in [*((value, True) for value in allowed), *((value, False) for value in forbidden)]:
        assert validator.is_valid(value) is good, value
        assert admits(grammar, json.dumps(value)) is good, value


REFUSED = [
    ({"type": "array", "uniqueItems": True, "minItems": 2}, "uniqueItems"),
    ({"not": {"$ref": "other.json"}}, "leads out"),
    ({"not": True}, "not"),
    ({"not": 3}, "no JSON Schema"),
    ({"propertyNames": {"format": "email"}}, "propertyNames"),
    ({"contains": True, "minContains": 10**6}, "too many"),
]


@pytest.mark.parametrize(("schema", "reason"), REFUSED)
def test_refusals_say_why(schema, reason):
    with pytest.raises(GrammarError, match=reason):
        compiled(schema)


def test_what_becomes_too_large_is_refused():
    schema = {"type": "integer"}
    for _ in range(7):
        schema = {"oneOf": [schema, schema, {"not": schema}]}
    with pytest.raises(GrammarError, match="too large"):
        rewritten(schema)


def compiled(schema):
    constraint = Constraint("json_schema", json.dumps(schema))
    return LIBRARY.load(constraint, LIBRARY.compile(constraint))


def admits(grammar, text: str) -> bool:
    matcher = grammar.matcher()
    return all(matcher.accept(len(SPECIAL) + byte) for byte in text.encode()) and matcher.matcher.is_accepting()


def quick_text(grammar, seed: int, limit: int = 250) -> bytes | None:
    """A random text; None if it found no end."""
    source, matcher = np.random.default_rng(seed), grammar.matcher()
    bits_1W = np.empty((1, -(-BYTES.size // 32)), np.int32)
    closing = np.isin(np.arange(BYTES.size), [EOS, *(len(SPECIAL) + byte for byte in b'"]}')])
    tokens: list[int] = []
    while len(tokens) < limit:
        LIBRARY.fill([matcher], bits_1W)
        if matcher.error() is not None:
            return None
        allowed_V = np.unpackbits(bits_1W.view(np.uint8), bitorder="little")[: BYTES.size]
        token = int((source.random(BYTES.size) * (1 + closing * len(tokens) / 10) * allowed_V).argmax())
        if token != EOS:
            matcher.accept(token)
            tokens.append(token)
        if token == EOS or matcher.ended():
            return b"".join(BYTES.tokens[token] for token in tokens)
    return None


VALUES = st.recursive(
    st.sampled_from([None, True, False, 0, 1, -2, 2.5, "", "a", "ab", "x]y"]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from("abc"), inner, max_size=2),
    max_leaves=3,
)
NAMES, SMALL = st.sampled_from("abc"), st.integers(0, 3)
TYPES = st.sampled_from(["null", "boolean", "integer", "number", "string", "array", "object"])
LEAVES = {
    "type": TYPES | st.lists(TYPES, min_size=1, max_size=3, unique=True),
    "const": VALUES,
    "enum": st.lists(VALUES, min_size=1, max_size=3),
    "minimum": st.integers(-2, 5),
    "exclusiveMaximum": st.integers(-2, 5),
    "minLength": SMALL,
    "maxLength": SMALL,
    "pattern": st.sampled_from(["^a", "b$", "^[a-f]+$", "o"]),
    "minItems": SMALL,
    "maxItems": SMALL,
    "uniqueItems": st.just(True),
    "required": st.lists(NAMES, max_size=2, unique=True),
    "maxProperties": SMALL,
    "propertyNames": st.sampled_from([{"maxLength": 2}, {"pattern": "^a"}, {"enum": ["a", "bc"]}, False]),
    "dependentRequired": st.dictionaries(NAMES, st.lists(NAMES, max_size=2, unique=True), max_size=1),
    "$ref": st.just("#/$defs/d"),
}


def nodes(inner):
    lists = st.lists(inner, min_size=1, max_size=3)
    one = dict.fromkeys(
        ("additionalProperties", "items", "not", "if", "then", "else", "unevaluatedProperties", "unevaluatedItems"), inner
    )
    many = dict.fromkeys(("anyOf", "oneOf", "allOf", "prefixItems"), lists)
    named = {
        "properties": st.dictionaries(NAMES, inner, max_size=2),
        "patternProperties": st.dictionaries(st.sampled_from(["^a", "b"]), inner, max_size=1),
        "dependentSchemas": st.dictionaries(NAMES, inner, max_size=1),
    }
    counted = st.fixed_dictionaries({"contains": inner}, optional={"minContains": SMALL, "maxContains": SMALL})
    keyword = st.one_of(
        [value.map(lambda found, key=key: {key: found}) for key, value in {**LEAVES, **one, **many, **named}.items()]
    )
    return st.lists(keyword | counted, min_size=1, max_size=4).map(
        lambda found: {k: v for part in found for k, v in part.items()}
    )


SCHEMAS = st.recursive(
    st.booleans() | st.fixed_dictionaries({}, optional={"type": LEAVES["type"], "const": VALUES}), nodes, max_leaves=6
)


@settings(max_examples=150)
@given(SCHEMAS, SCHEMAS, st.integers(0, 1000))
def test_random_schemas(schema, other, seed):
    if isinstance(schema, bool):
        return
    schema = {**schema, "$defs": {"d": other}}
    try:
        grammar = compiled(schema)
    except GrammarError:
        return
    for number in range(3):
        text = quick_text(grammar, seed + number)
        try:
            assert text is None or jsonschema.Draft202012Validator(schema).is_valid(json.loads(text)), text
        except (RecursionError, OverflowError):  # of the validator: a schema that means itself, an infinite number
            return
