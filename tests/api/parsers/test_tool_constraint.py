"""Answers that are held to calls: whatever the grammar lets through, the format's own parser reads as calls that the schemas allow."""

from __future__ import annotations

import json

import jsonschema
import pytest

from raysgl.api.errors import ApiError
from raysgl.api.parsers.events import TextDelta, ToolCallArguments, ToolCallStart
from raysgl.api.parsers.reasoning import REASONING_FORMATS
from raysgl.api.parsers.registry import TOOL_FORMATS, OutputParser, tool_format
from raysgl.api.parsers.tool_constraint import tool_constraint
from raysgl.grammar.compiler import GrammarCompiler

from .walks import SPECIAL, VOCABULARY, random_answer, tokens_of

FORMATS = [None, *sorted(set(TOOL_FORMATS) - {"qwen", "qwen25"})]
OPTIONAL = {"anyOf": [{"type": "string"}, {"type": "null"}], "default": None}
NODE = {
    "type": "object",
    "properties": {"v": {"type": "integer"}, "next": {"anyOf": [{"$ref": "#/$defs/Node"}, {"type": "null"}]}},
}
TOOLS = {
    "weather": {
        "type": "object",
        "properties": {
            "city": {"type": "string"},
            "unit": {"enum": ["C", "F", 3, None, "null"]},
            "days": {"type": "array", "items": {"type": "integer", "minimum": 1}, "maxItems": 3},
            "wet": {"type": ["boolean", "null", "string"], "maxLength": 9},
        },
        "required": ["city", "days"],
        "additionalProperties": False,
    },
    "now": {},
    "book.it": {
        "type": "object",
        "properties": {
            "on": {"type": "string", "format": "date"},
            "code": {"type": "string", "pattern": "^[A-Z]{2}-[0-9]+$"},
            "note": OPTIONAL,
            "price": {"type": "number", "exclusiveMinimum": 0, "maximum": 100},
            "why": {"type": "string", "minLength": 2, "maxLength": 5},
        },
        "required": ["on", "price", "why"],
    },
    "tree": {
        "type": "object",
        "properties": {
            "root": {"$ref": "#/$defs/Node"},
            "tags": {"type": "object", "additionalProperties": {"type": "string"}},
        },
        "required": ["root"],
        "$defs": {"Node": NODE},
    },
    "any": {
        "type": "object",
        "properties": {
            "x": {},
            "y": {"type": ["integer", "string"]},
            "z": {"const": "a\nb"},
            "n": {"type": ["string", "object"], "anyOf": [{"type": "boolean"}, {"maxLength": 3}]},
        },
        "required": ["y", "w", "n"],
    },
}


@pytest.fixture(scope="module")
def grammars():
    made = GrammarCompiler(VOCABULARY, "auto", 20.0, 2000, 1 << 30)
    yield made
    made.close()


def answers(grammars, name, tools, count=4, strict=(), begin=(), **wishes):
    """Random answers: all of it, what is said in it, and the names of what is called. strict: of those that are not, arguments are
    not checked, if the answer is free."""
    found = tool_constraint(name, tools, strict=strict, **wishes)
    grammar = grammars.compile(found.constraint).result()
    for seed in range(count):
        text = random_answer(grammars, grammar, found.format, seed, begin)
        if text is None:
            continue
        parser = OutputParser(REASONING_FORMATS["gpt-oss"] if found.whole else None, found.format, tools)
        said, calls = "", []
        for event in parser.feed(text) + parser.finish():
            match event:
                case TextDelta():
                    said += event.text
                case ToolCallStart():
                    calls.append([event.name, ""])
                case ToolCallArguments():
                    calls[event.index][1] += event.text
        for tool, written in calls:
            arguments = json.loads(written)
            assert isinstance(arguments, dict), text
            if tool in strict or not strict:
                jsonschema.validate(arguments, tools[tool])
        yield text, said, [tool for tool, _ in calls]


@pytest.mark.parametrize("special", [{}, SPECIAL], ids=["text", "special"])
@pytest.mark.parametrize("name", FORMATS)
def test_required(grammars, name, special):
    found = list(answers(grammars, name, TOOLS, 6, required=True, special=special))
    assert found
    for text, said, calls in found:
        assert calls, text
        assert not said, text


@pytest.mark.parametrize("name", FORMATS[1:])
def test_calls_or_an_answer_of_a_schema(grammars, name):
    schema = {"type": "object", "properties": {"x": {"enum": [1, "é"]}}, "required": ["x"], "additionalProperties": False}
    found = list(answers(grammars, name, {"now": {}}, 12, answer=schema))
    assert {bool(calls) for _, _, calls in found} == {True, False}
    for text, said, calls in found:
        assert not (said and calls), text
        if said:
            jsonschema.validate(json.loads(said), schema)


@pytest.mark.parametrize("tool", TOOLS)
@pytest.mark.parametrize("name", FORMATS)
def test_named(grammars, name, tool):
    found = list(answers(grammars, name, TOOLS, 2, named=tool))
    assert found
    for text, said, calls in found:
        assert (said, calls) == ("", [tool]), text


@pytest.mark.parametrize("name", FORMATS)
def test_one_at_most(grammars, name):
    for text, _, calls in answers(grammars, name, {"now": {}}, required=True, parallel=False):
        assert calls == ["now"], text


@pytest.mark.parametrize("special", [{}, SPECIAL], ids=["text", "special"])
@pytest.mark.parametrize("name", FORMATS[1:])
def test_strict_tools_of_a_free_answer(grammars, name, special):
    format = tool_format(name)
    structures = () if format.whole else format.structures
    bare = "".join(structure.bare for structure in structures)
    triggers = {trigger for structure in structures for trigger in structure.triggers}
    strict = {"weather", "tree"}
    for text, _, calls in answers(grammars, name, TOOLS, strict=strict, special=special):
        assert format.whole or bool(calls) == (
            any(trigger in text for trigger in triggers) or text.lstrip().startswith(tuple(bare))
        ), text
    for structure in structures:
        begin = "Well, " if structure.triggers else structure.bare
        ids = tokens_of(begin + "".join(structure.triggers[:1]), special)
        found = list(answers(grammars, name, TOOLS, strict=strict, special=special, begin=ids))
        assert found
        for text, said, calls in found:
            assert calls, text
            assert said == begin.strip() * bool(structure.triggers), text


def deep():
    found = {}
    for _ in range(100_000):
        found = {"properties": {"x": found}}
    return found


@pytest.mark.parametrize("special", [{}, SPECIAL], ids=["text", "special"])
def test_channels(grammars, special):
    """gpt-oss: thoughts, which may be left out; then a call, with something said before, or an answer."""

    def of(begin, **wishes):
        found = list(answers(grammars, "gpt-oss", TOOLS, special=special, begin=tokens_of(begin, special), **wishes))
        assert found
        return [(said, calls) for _, said, calls in found]

    thoughts = "<|channel|>analysis<|message|>Hm<|end|><|start|>assistant"
    assert all((said, len(calls)) == ("", 1) for said, calls in of("<|channel|>commentary to=", strict={"now"}))
    assert all(found == ("", ["now"]) for found in of(thoughts, named="now"))
    assert all(not calls for _, calls in of(thoughts + "<|channel|>final", strict={"now"}))
    before = "<|channel|>commentary<|message|>So<|end|><|start|>assistant<|channel|>commentary to="
    assert all((said, len(calls)) == ("So", 1) for said, calls in of(thoughts + before, strict={"now"}))


REFUSED = [
    ({"named": "x"}, {}, "tool_choice"),
    ({"required": True}, {}, "tool_choice"),
    ({"required": True}, {"a": {"type": "array"}}, "an object"),
    ({"required": True}, {"a b": {}}, "name"),
    ({"required": True}, {"a": deep()}, "too deep"),
]


@pytest.mark.parametrize(("wishes", "tools", "reason"), REFUSED)
@pytest.mark.parametrize("name", [None, "qwen3_coder", "pythonic"])
def test_refusals_say_why(name, wishes, tools, reason):
    with pytest.raises(ApiError, match=reason):
        tool_constraint(name, tools, **wishes)


def parameter(**schema):
    return {"a": {"type": "object", "properties": {"p": schema}, "required": ["p"]}}


TEXT_REFUSED = [
    (parameter(type="string", pattern=1), "pattern must"),
    (parameter(anyOf=3), "'p'"),
    (parameter(type="string", minLength="x"), "'p'"),
    (parameter(type="string", format="iri"), "'p': format"),
    (parameter(type="string", **{"not": {"const": "x"}}), "not"),
    ({"a": {"type": "object", "properties": {"p": {}}, "anyOf": [{"required": ["p"]}]}}, "anyOf"),
    ({"a": {"type": "object", "properties": {"<p>": {}}, "required": ["<p>"]}}, "<p>"),
]


@pytest.mark.parametrize(("tools", "reason"), TEXT_REFUSED)
@pytest.mark.parametrize("name", ["qwen3_coder", "minimax-m2", "glm45"])
def test_what_cannot_stand_between_tags(name, tools, reason):
    with pytest.raises(ApiError, match=reason):
        tool_constraint(name, tools, required=True)


def test_names_that_python_cannot_say():
    tools = {"a": {"type": "object", "properties": {"from": {}, "to": {}}, "required": ["to"]}}
    assert tool_constraint("pythonic", tools, required=True) is not None
    tools["a"]["required"] = ["from"]
    with pytest.raises(ApiError, match="from"):
        tool_constraint("pythonic", tools, required=True)


def test_an_answer_without_strict_tools_is_free():
    assert tool_constraint("hermes", TOOLS) is None
    assert tool_constraint(None, TOOLS, strict={"now"}) is None
