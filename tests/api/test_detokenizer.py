"""Streams of text equal the text of the whole list, for every kind of tokenizer."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raysgl.api.detokenizer import detokenizer
from raysgl.api.tokenizer import Kind, Tokenizer

from .conftest import MAKERS

SAMPLES = [
    "The quick brown fox",
    "👩‍👩‍👧 🙂 naïve 東京 e\u0301",
    "  two spaces,\n\nlines\tand tabs ",
    "Привет, мир!",
    "",
]


@pytest.fixture(scope="module", params=MAKERS)
def any_tokenizer(request, tokenizer_folders) -> Tokenizer:
    return Tokenizer.load(tokenizer_folders[request.param])


def stream(tokenizer: Tokenizer, ids: list[int], skip: bool = True, continues: bool = False) -> list[str]:
    text = detokenizer(tokenizer, skip, continues)
    return [*(text.push(token) for token in ids), text.flush()]


def test_the_kinds_are_recognised(tokenizer_folders):
    kinds = {name: Tokenizer.load(folder).kind for name, folder in tokenizer_folders.items()}
    assert kinds == {"bytes": Kind.BYTES, "pieces": Kind.PIECES, "metaspace": Kind.OTHER}


@pytest.mark.parametrize("sample", SAMPLES)
def test_equals_the_whole_and_never_shows_half_a_character(any_tokenizer, sample):
    ids = any_tokenizer.encode(sample)
    pieces = stream(any_tokenizer, ids)
    assert "".join(pieces) == any_tokenizer.decode(ids)
    assert "\ufffd" not in "".join(pieces)


@given(text=st.text(max_size=40), data=st.data())
def test_any_text_at_any_split(tokenizer, text, data):
    ids = tokenizer.encode(text, add_special_tokens=False)
    split = data.draw(st.integers(0, len(ids)))
    parts = detokenizer(tokenizer)
    first = "".join(map(parts.push, ids[:split]))
    assert text.startswith(first)
    assert first + "".join(map(parts.push, ids[split:])) + parts.flush() == text


@given(st.lists(st.integers(0, 420), max_size=30), st.booleans())
def test_any_ids_of_a_byte_level_tokenizer(tokenizer, ids, skip):
    """Also bytes that are no UTF-8, special tokens, and ids beyond the vocabulary."""
    assert "".join(stream(tokenizer, ids, skip)) == tokenizer.decode(ids, skip)


RUN = st.sampled_from(["é".encode(), "👩".encode(), b"a", "東".encode()])


@given(st.lists(st.one_of(st.integers(259, 275), RUN), max_size=12), st.booleans())
def test_byte_fallback_of_sentencepiece(tokenizer_folders, items, broken):
    tokenizer = Tokenizer.load(tokenizer_folders["pieces"])
    ids = [token for item in items for token in ([item] if isinstance(item, int) else [3 + byte for byte in item])]
    if broken:
        ids.append(3 + 0xE6)  # the beginning of a character that never ends
        if len(ids) > 1 and 3 <= ids[-2] < 259:
            return  # the library would then also replace the characters before it
    assert "".join(stream(tokenizer, ids)) == tokenizer.decode(ids)


def test_a_continuation_keeps_its_leading_space(tokenizer_folders):
    tokenizer = Tokenizer.load(tokenizer_folders["pieces"])
    ids = tokenizer.encode("The", add_special_tokens=False)
    assert tokenizer.decode(ids) == "The"
    assert "".join(stream(tokenizer, ids, continues=True)) == " The"
    metaspace = Tokenizer.load(tokenizer_folders["metaspace"])
    prompt, rest = metaspace.encode("The quick"), metaspace.encode("brown fox")
    both = metaspace.decode(prompt) + "".join(stream(metaspace, rest, continues=True))
    assert both == metaspace.decode(prompt + rest) == "The quick brown fox"


def test_special_tokens_are_shown_when_asked(tokenizer):
    ids = [*tokenizer.encode("a"), 2]
    assert "".join(stream(tokenizer, ids, skip=True)) == "a"
    assert "".join(stream(tokenizer, ids, skip=False)) == "a<|im_end|>"


def test_token_bytes_put_together_are_the_text(any_tokenizer):
    for sample in SAMPLES:
        ids = any_tokenizer.encode(sample, add_special_tokens=False)
        if any_tokenizer.kind is not Kind.OTHER:
            text = b"".join(map(any_tokenizer.token_bytes, ids)).decode()
            assert text.removeprefix(" " if any_tokenizer.strips_leading_space else "") == sample
