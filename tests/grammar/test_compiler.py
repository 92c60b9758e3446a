"""Every kind of constraint by the library that takes it, hostile ones, and what is kept."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest

from raysgl.grammar.compiler import GrammarCompiler, libraries_for
from raysgl.grammar.interface import GrammarError
from raysgl.sampling.constraint import Constraint

from .walk import BYTES, EOS, SPECIAL, Unfinished, random_text

TAG = {
    "type": "tag",
    "begin": "<call>",
    "content": {"type": "json_schema", "json_schema": {"type": "integer"}},
    "end": "</call>",
}


def tag(**format):
    return json.dumps({"type": "structural_tag", "format": format})


def texts(grammars, kind, text, count=12):
    grammar = grammars.compile(Constraint(kind, text)).result()
    found = []
    for seed in range(count):
        try:
            found.append(random_text(grammars, grammar, seed).decode("utf-8", "replace"))
        except Unfinished:
            continue
    assert len(found) > count // 2
    return found


@pytest.mark.parametrize(
    ("pattern", "meaning"),
    [
        (r"\d{3}-[a-f]+", r"[0-9]{3}-[a-f]+"),
        (r"^(yes|no)$", r"yes|no"),
        (r"a\$", r"a\$"),
        (r"\w\s\d", r"[0-9A-Za-z_][ \t\n\r\f\v][0-9]"),
        (r"(?i)abc", r"[aA][bB][cC]"),
        (r"[^x]{2}/é", r"[^x]{2}/é"),
        (r"^$", r""),
    ],
)
def test_regex(grammars, pattern, meaning):
    for text in texts(grammars, "regex", pattern):
        assert re.fullmatch(meaning, text, re.ASCII | re.DOTALL), text


@pytest.mark.parametrize(
    ("grammar", "meaning"),
    [
        ('root ::= "a" ("b" | item)* [0-9]{2}\nitem ::= "\\n" [x-z]+', r"a(b|\n[x-z]+)*[0-9]{2}"),
        ('start: "<" WORD (" " WORD)* ">"\nWORD: /[a-z]+/', r"<[a-z]+( [a-z]+)*>"),
        ('start: "a\\"b" | "c\\n" | "\\\\"', r'a"b|c\n|\\'),
    ],
)
def test_ebnf(grammars, grammar, meaning):
    for text in texts(grammars, "ebnf", grammar):
        assert re.fullmatch(meaning, text), text


def test_structural_tags(grammars):
    for text in texts(grammars, "structural_tag", tag(**TAG)):
        assert re.fullmatch(r"<call>-?\d+</call>", text), text
    old = {"structures": [{"begin": "<call>", "schema": {"type": "boolean"}, "end": "</call>"}], "triggers": ["<call>"]}
    for text in texts(grammars, "structural_tag", json.dumps(old)):
        assert all(inner in ("true", "false") for inner in re.findall(r"<call>(.*?)</call>", text)), text


@pytest.mark.parametrize("pattern", ["^[ab]c", "b$", "a|b", "^(b|c)$", r"[|]\$", "(^|b)"])
def test_lark_with_schemas_and_patterns(grammars, pattern):
    rules = 'start: "<" json_0 ">" SHORT\nSHORT: P & /.{0,4}/'
    parts = {"rules": rules, "schemas": {"json_0": {"type": "boolean"}}, "patterns": {"P": {"pattern": pattern}}}
    try:
        found = texts(grammars, "lark", json.dumps(parts))
    except GrammarError:
        assert pattern == "(^|b)"
        return
    for text in found:
        truth, _, rest = text[1:].partition(">")
        assert truth in ("true", "false")
        assert re.search(pattern, rest), text


TAGS = [
    (tag(type="triggered_tags", triggers=["<c"], tags=[TAG | {"begin": "<c>"}, TAG | {"begin": "<cd>"}], at_least_one=True, stop_after_first=True), r"<cd?>-?\d+</call>"),
    (tag(type="tags_with_separator", tags=[TAG], separator=", ", at_least_one=True), r"<call>-?\d+</call>(, <call>-?\d+</call>)*"),
    (tag(type="sequence", elements=[{"type": "const_string", "value": "é"}, TAG | {"content": {"type": "any_text"}, "end": "]"}]), r"é<call>[^\]]*\]"),
    (tag(type="or", elements=[TAG | {"content": {"type": "regex", "pattern": "[a-c]*"}}, {"type": "regex", "pattern": "x|y"}]), r"<call>[a-c]*</call>|x|y"),
    (tag(**TAG | {"begin": "<|bos|>", "end": "<|bos|>"}), r"<\|bos\|>-?\d+<\|bos\|>"),
    (tag(**TAG | {"content": {"type": "grammar", "grammar": 'root ::= "a" | "b"'}}), r"<call>[ab]</call>"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "meaning"), TAGS)
def test_structural_tags_of_all_kinds(grammars, text, meaning):
    grammar = grammars.compile(Constraint("structural_tag", text)).result()
    found = 0
    for seed in range(8):
        try:
            said = random_text(grammars, grammar, seed).decode()
        except Unfinished:
            continue
        found += 1
        assert re.fullmatch(meaning, said), said
    assert found


def test_schemas_inside_of_tags_are_followed_or_refused(grammars):
    schema = {"type": "array", "items": {"enum": [1, 2]}, "uniqueItems": True}
    content = {"type": "json_schema", "json_schema": schema}
    for text in texts(grammars, "structural_tag", tag(**TAG | {"content": content}), 6):
        value = json.loads(text.removeprefix("<call>").removesuffix("</call>"))
        assert len(set(value)) == len(value)
    with pytest.raises(GrammarError, match="uniqueItems"):
        grammars.compile(Constraint("structural_tag", tag(**TAG | {"content": content, "end": ["a", "b"]}))).result()
    content["json_schema"] = {"allOf": [{"type": "string"}, {"maxLength": 2}]}
    with pytest.raises(GrammarError, match="allOf"):
        grammars.compile(Constraint("structural_tag", tag(**TAG | {"content": content, "end": ["a", "b"]}))).result()


def test_special_tokens_are_text_for_tags_alone(grammars):
    bos = SPECIAL.index(b"<|bos|>")

    def first(kind, text):
        bits = np.zeros((1, grammars.num_words), np.int32)
        grammars.fill([grammars.compile(Constraint(kind, text)).result().matcher()], bits)
        return np.unpackbits(bits.view(np.uint8), bitorder="little")

    assert first("structural_tag", tag(**(TAG | {"begin": "<|bos|>"})))[bos]
    assert not first("regex", r"<\|bos\|>")[bos]
    assert not first("regex", r".*")[bos]


def test_eos_and_only_where_the_text_may_end(grammars):
    matcher = grammars.compile(Constraint("regex", "ab?")).result().matcher()
    bits = np.zeros((1, grammars.num_words), np.int32)
    a, b = (len(SPECIAL) + byte for byte in b"ab")
    allowed = []
    for token in (a, b):
        grammars.fill([matcher], bits)
        allowed.append(np.flatnonzero(np.unpackbits(bits.view(np.uint8), bitorder="little")).tolist())
        assert not matcher.ended()
        assert matcher.accept(token)
    assert EOS not in allowed[0]
    assert allowed[1] == [EOS, b]
    assert matcher.ended()
    assert not matcher.accept(a)


def test_masks_of_both_libraries_in_one_step(grammars):
    pair = [
        Constraint("structural_tag", tag(type="grammar", grammar='root ::= "<" [a-z]')),
        Constraint("regex", "[xy]"),
        Constraint("regex", "z"),
    ]
    matchers = [grammars.compile(constraint).result().matcher() for constraint in pair]
    bits = np.zeros((3, grammars.num_words), np.int32)
    grammars.fill(matchers, bits)
    rows = np.unpackbits(bits.view(np.uint8), axis=1, bitorder="little")
    assert [bytes((np.flatnonzero(row) - len(SPECIAL)).tolist()) for row in rows] == [b"<", b"xy", b"z"]


HOSTILE = [
    ("regex", "a{2000000000}", "repeats something"),
    ("regex", "(" * 100 + "a" + ")" * 100, "nested deeper"),
    ("regex", "(a", "unclosed group"),
    ("regex", r"(?=a)b", "look-around"),
    ("regex", r"(a)\1", "backreference"),
    ("regex", "a" * 300_000, "bytes"),
    ("json_schema", '{"type": "object", "not": {}}', "not"),
    ("json_schema", '{"multipleOf": 1000003}', "multipleOf"),
    ("json_schema", "{", "not JSON"),
    ("json_schema", "false", "nsatisfiable"),
    ("json_schema", "[1]", "object or boolean"),
    ("json_schema", "[" * 5000, "nested deeper"),
    ("json_schema", '{"items": ' * 200 + "{}" + "}" * 200, "recursion|nested"),
    ("json_schema", '{"pattern": "(?!a)"}', "look-around"),
    ("json_schema", '{"type": "string", "enum": [1]}', "nsatisfiable"),
    ("json_schema", '{"$ref": "http://example.com/schema"}', "leads out"),
    ("ebnf", "root ::= foo", "foo"),
    ("ebnf", "start: foo", "foo"),
    ("structural_tag", '{"format": {"type": "nothing"}}', "nothing"),
    ("structural_tag", "{}", "format"),
    ("lark", '{"rules": "start: P", "schemas": {}, "patterns": {"P": {"pattern": "^a|b"}}}', "anchor"),
    ("lark", '{"rules": "start: P", "schemas": {}, "patterns": {"P": {"pattern": "(a{99999}){99999}"}}}', "repeats"),
]


@pytest.mark.parametrize(("kind", "text", "reason"), HOSTILE, ids=[f"{kind} {text[:30]}" for kind, text, _ in HOSTILE])
def test_refusals_say_why(grammars, kind, text, reason):
    with pytest.raises(GrammarError, match=reason):
        grammars.compile(Constraint(kind, text)).result()


@pytest.mark.parametrize(
    "pattern", ["(a{1,1000}){1,1000}", "(x+x+)+y", "(a|aa|aaa)*b", "((((a{1,10}){1,10}){1,10}){1,10}){1,10}"]
)
def test_a_bomb_ends_its_own_sequence_at_worst(grammars, pattern):
    """It is refused, or followed, or its masks end with an error; none takes long (the suite would)."""
    grammar = grammars.compile(Constraint("regex", pattern)).result()
    matcher, bits = grammar.matcher(), np.zeros((1, grammars.num_words), np.int32)
    letter = len(SPECIAL) + (pattern.encode().strip(b"(")[0])
    for _ in range(300):
        grammars.fill([matcher], bits)
        if matcher.error() is not None or not matcher.accept(letter):
            break
    assert matcher.error() is None or "<state>" not in matcher.error()


def test_what_takes_too_long_is_refused_and_others_are_compiled_meanwhile():
    made = GrammarCompiler(BYTES, "auto", 1.0, 100, 1 << 30)
    try:
        patterns = [{"pattern": f".*a.{{{i}}}.*"} for i in range(1, 20)]
        hostile = Constraint("json_schema", json.dumps({"type": "string", "allOf": patterns}))
        slow = made.compile(hostile)
        for i in range(20):
            made.compile(Constraint("regex", f"a{{{i}}}b")).result()
        with pytest.raises(GrammarError, match="more than 1 s to compile"):
            slow.result()
        made.compile(Constraint("regex", "after")).result()
        assert made.stats.refused == 1
        assert made.stats.compiled == 22
    finally:
        made.close()


def test_a_process_that_dies_is_replaced(grammars):
    made = GrammarCompiler(BYTES, "auto", 10.0, 100, 1 << 30)
    try:
        made.compile(Constraint("regex", "a")).result()
        for sandbox in made._sandboxes:
            sandbox._process.kill()
            sandbox._process.wait()
        for pattern in "bcde":
            made.compile(Constraint("regex", pattern)).result()
    finally:
        made.close()


def test_compiled_ones_are_kept_and_the_oldest_dropped():
    made = GrammarCompiler(BYTES, "auto", 10.0, 3, 1 << 30)
    try:
        for pattern in ("a", "b", "c", "a", "d"):
            made.compile(Constraint("regex", pattern)).result()
        assert made.stats.hits == 1
        assert {constraint.text for constraint in made._compiled} == {"c", "a", "d"}
        made._num_bytes = 1
        made.compile(Constraint("regex", "e")).result()
        assert {constraint.text for constraint in made._compiled} == {"e"}
    finally:
        made.close()


def test_who_compiles_what():
    tags, regex = Constraint("structural_tag", "{}"), Constraint("regex", "a")
    assert libraries_for("auto", tags) == ["llguidance", "xgrammar"]
    assert libraries_for("auto", regex) == ["llguidance"]
    assert libraries_for("llguidance", tags) == ["llguidance"]
    assert libraries_for("xgrammar", regex) == ["xgrammar"]
    assert libraries_for("xgrammar", Constraint("lark", "{}")) == ["llguidance"]


def test_xgrammar_for_everything():
    made = GrammarCompiler(BYTES, "xgrammar", 20.0, 100, 1 << 30)
    try:
        schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"], "additionalProperties": False}
        for text in texts(made, "json_schema", json.dumps(schema)):
            assert json.loads(text).keys() == {"a"}
        for text in texts(made, "regex", "[ab]{2}c"):
            assert re.fullmatch("[ab]{2}c", text)
        for text in texts(made, "ebnf", 'root ::= "a" | "b"'):
            assert text in ("a", "b")
        with pytest.raises(GrammarError, match="uniqueItems"):
            made.compile(Constraint("json_schema", '{"type": "array", "uniqueItems": true}')).result()
    finally:
        made.close()
