"""What parsers read survives detokenising: marks that are special tokens, marks cut between tokens, characters cut between tokens."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raysgl.api.parsers.reasoning import REASONING_FORMATS
from raysgl.api.parsers.registry import OutputParser, tool_format
from raysgl.api.sequence_text import SequenceText
from raysgl.api.tokenizer import BYTE_OF_CHAR, Tokenizer
from raysgl.messages import Finish, SequenceOutput
from raysgl.sampling.params import SamplingParams

from .conftest import with_marks
from .parsers.test_tool_formats import CUT, GOOD, TEXT, TOOLS, joined

CHAR_OF_BYTE = {byte: char for char, byte in BYTE_OF_CHAR.items()}
SAMPLES = [(name, text) for name, text, *_ in GOOD] + TEXT + CUT


def marks_of(reasoning: str, calls: str) -> tuple[str, ...]:
    format = REASONING_FORMATS[reasoning]
    return (format.begin, format.end, *tool_format(calls).tags)


@pytest.fixture(scope="module")
def tokenizer_of(tokenizer_folders):
    """tokenizer_of(kind of tokenizer, marks, whether they are special tokens)."""
    made: dict = {}

    def get(kind: str, marks: tuple[str, ...], special: bool) -> Tokenizer:
        key = (kind, marks, special)
        if key not in made:
            made[key] = with_marks(tokenizer_folders[kind], marks, special)
        return made[key]

    return get


def events_of(pieces: list[str], reasoning: str, calls: str) -> list:
    parser = OutputParser(REASONING_FORMATS[reasoning], tool_format(calls), TOOLS)
    return joined([event for piece in pieces for event in parser.feed(piece)] + parser.finish())


def through(tokenizer: Tokenizer, groups: list[list[int]], kept: frozenset[int]) -> list[str]:
    """The texts of a sequence's pieces, one for each group of tokens."""
    text = SequenceText(0, tokenizer, SamplingParams(), kept)
    pieces = [text.push(SequenceOutput(0, ids)).text for ids in groups]
    return [*pieces, text.push(SequenceOutput(0, [], Finish("length"))).text]


def singles(tokenizer: Tokenizer, text: str, marks: tuple[str, ...]) -> list[int]:
    """The finest tokens that give the text: marks where they stand, else bytes."""
    ids, rest = [], text
    while rest:
        mark = next((mark for mark in marks if rest.startswith(mark)), None)
        if mark is not None:
            ids.append(tokenizer._backend.token_to_id(mark))
            rest = rest[len(mark) :]
            continue
        ids += [tokenizer._backend.token_to_id(CHAR_OF_BYTE[byte]) for byte in rest[0].encode()]
        rest = rest[1:]
    return ids


@pytest.mark.parametrize("special", [True, False], ids=["special", "plain"])
@pytest.mark.parametrize("reasoning", ["qwen3", "mistral", "kimi"])
def test_token_by_token_and_byte_by_byte(tokenizer_of, reasoning, special):
    for calls, text in SAMPLES:
        check_every_token(tokenizer_of, calls, text, reasoning, special)


def check_every_token(tokenizer_of, calls, text, reasoning, special):
    marks = marks_of(reasoning, calls)
    tokenizer = tokenizer_of("bytes", marks, special)
    kept = frozenset(tokenizer.special_marks(marks).values())
    assert bool(kept) == special
    begin, end = REASONING_FORMATS[reasoning].begin, REASONING_FORMATS[reasoning].end
    text = f"{begin}Größe 👩‍👩‍👧 {begin[:3]}{end}{text}"
    expected = events_of([text], reasoning, calls)
    assert expected[0][0] == ("reasoning",)
    for ids in (tokenizer.encode(text, False), singles(tokenizer, text, marks if special else ())):
        pieces = through(tokenizer, [[token] for token in ids], kept)
        assert "".join(pieces) == text
        assert events_of(pieces, reasoning, calls) == expected


@given(st.data())
def test_any_groups_of_tokens(tokenizer_of, data):
    kind = data.draw(st.sampled_from(["bytes", "metaspace"]))
    calls, text = data.draw(st.sampled_from(SAMPLES))
    marks, special = marks_of("qwen3", calls), data.draw(st.booleans())
    tokenizer = tokenizer_of(kind, marks, special)
    ids = tokenizer.encode("<think>é東</think>" + text, False)
    bounds = sorted({0, len(ids), *data.draw(st.lists(st.integers(0, len(ids)), max_size=12))})
    groups = [ids[a:b] for a, b in pairwise(bounds)]
    kept = frozenset(tokenizer.special_marks(marks).values())
    pieces = through(tokenizer, groups, kept)
    assert events_of(pieces, "qwen3", calls) == events_of(["".join(pieces)], "qwen3", calls)
    assert special == ("<think>" not in "".join(through(tokenizer, groups, frozenset())))


def test_other_special_tokens_are_still_skipped(tokenizer_of):
    tokenizer = tokenizer_of("bytes", ("<think>",), True)
    kept = frozenset(tokenizer.special_marks(("<think>", "<never>", "a")).values())
    ids = [*tokenizer.encode("<think>a", False), 1, *tokenizer.encode("b", False)]
    assert "".join(through(tokenizer, [ids], kept)) == "<think>ab"


def test_a_mark_in_the_middle_of_a_character(tokenizer_of):
    """A broken character before a mark is U+FFFD, and the mark is read."""
    tokenizer = tokenizer_of("bytes", ("<think>", "</think>"), True)
    half = tokenizer._backend.token_to_id(CHAR_OF_BYTE["é".encode()[0]])
    ids = tokenizer.encode("<think>a", False) + [half] + tokenizer.encode("</think>b", False)
    pieces = through(tokenizer, [[token] for token in ids], frozenset(tokenizer.special_ids))
    assert events_of(pieces, "qwen3", "hermes") == [(("reasoning",), "a\ufffd"), (("text",), "b")]
