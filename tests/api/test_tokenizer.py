"""Loading tokenizers, BOS, special tokens."""

from __future__ import annotations

import json
import shutil

import pytest

from raysgl.api.tokenizer import INLINE_CHARS, Tokenizer


@pytest.fixture
def change(tokenizer_folders, tmp_path):
    """change(kind, **config) -> tokenizer with other settings in tokenizer_config.json"""

    def make(kind: str, **config) -> Tokenizer:
        folder = tmp_path / kind
        shutil.copytree(tokenizer_folders[kind], folder, dirs_exist_ok=True)
        path = folder / "tokenizer_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | config))
        return Tokenizer.load(folder)

    return make


@pytest.mark.parametrize(
    ("kind", "add_bos", "starts"),
    [("pieces", None, True), ("pieces", True, True), ("pieces", False, False), ("bytes", None, False), ("bytes", True, True)],
)
def test_bos(change, kind, add_bos, starts):
    tokenizer = change(kind, add_bos_token=add_bos)
    ids = tokenizer.encode("The fox")
    assert (ids[0] == tokenizer.bos_id) == starts
    assert ids.count(tokenizer.bos_id) == starts
    assert tokenizer.bos_id not in tokenizer.encode("The fox", add_special_tokens=False)
    assert tokenizer.decode(ids) == "The fox"


def test_special_tokens_come_from_either_file(tokenizer_folders, tmp_path):
    shutil.copytree(tokenizer_folders["bytes"], tmp_path, dirs_exist_ok=True)
    (tmp_path / "tokenizer_config.json").write_text("{}")
    (tmp_path / "special_tokens_map.json").write_text(json.dumps({"eos_token": {"content": "<|im_end|>"}, "bos_token": None}))
    tokenizer = Tokenizer.load(tmp_path)
    assert tokenizer.special_tokens == {"eos_token": "<|im_end|>"}
    assert (tokenizer.eos_id, tokenizer.bos_id) == (2, None)


def test_a_named_token_that_is_in_the_vocabulary_becomes_special(change):
    tokenizer = change("bytes", pad_token="!")
    pad = tokenizer.encode("!")
    assert tokenizer.decode(pad) == ""
    size = tokenizer.vocab_size
    assert change("bytes", pad_token="<not there>").vocab_size == size


def test_what_is_missing_or_broken_is_said(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"tokenizer\.json"):
        Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match=r"tokenizer\.json"):
        Tokenizer.load(tmp_path)


async def test_long_texts_in_a_thread_are_the_same(tokenizer):
    text = "The quick brown fox " * INLINE_CHARS
    assert await tokenizer.encode_async(text) == tokenizer.encode(text)
    assert tokenizer.fewest_tokens(text) <= len(tokenizer.encode(text))


def test_ids_and_tokens(tokenizer):
    (space_the,) = tokenizer.encode(" the", add_special_tokens=False)[:1]
    assert tokenizer.token(space_the).startswith("Ġ")
    assert tokenizer.token_text(space_the).startswith(" ")
    assert tokenizer.token(10**6) is None
    assert tokenizer.token_bytes(10**6) == b""
    assert tokenizer.token(tokenizer.vocab_size - 1) is not None
    assert tokenizer.special_ids == {0, 1, 2}


def test_a_prompt_with_bos_gets_no_second_one(tokenizer_folders):
    pieces = Tokenizer.load(tokenizer_folders["pieces"])
    once = pieces.encode("The fox")
    assert once[0] == pieces.bos_id
    assert pieces.encode("<s>The fox").count(pieces.bos_id) == 1
    assert pieces.encode("<s>The fox", add_special_tokens=False).count(pieces.bos_id) == 1
