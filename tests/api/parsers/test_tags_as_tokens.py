"""Tags that are tokens of a model's tokenizer, special or not: what the masks let through is taken, and the tags are those tokens."""

from __future__ import annotations

import numpy as np
import pytest

from raysgl.actors.grammars import vocabulary_of
from raysgl.api.parsers.events import TextDelta, ToolCallStart
from raysgl.api.parsers.registry import OutputParser, tool_format
from raysgl.api.parsers.tool_constraint import tool_constraint
from raysgl.grammar.llguidance_backend import LLGuidance
from tests.api.conftest import with_marks

TOOLS = {"now": {"type": "object", "properties": {"zone": {"enum": ["UTC", "CET"]}}, "required": ["zone"]}}
EOS = 2


@pytest.mark.parametrize("special", [True, False], ids=["special", "plain"])
@pytest.mark.parametrize("kind", ["bytes", "pieces"])
@pytest.mark.parametrize("name", ["hermes", "qwen3_coder", "glm45", "mistral", "kimi_k2", "lfm2"])
def test_masks_let_through_what_is_taken(tokenizer_folders, name, kind, special):
    format = tool_format(name)
    tokenizer = with_marks(tokenizer_folders[kind], format.tags, special)
    library = LLGuidance(vocabulary_of(tokenizer, tokenizer.vocab_size, (EOS,)))
    constraint = tool_constraint(
        name, TOOLS, required=True, parallel=False, special=tokenizer.special_marks(format.tags)
    ).constraint
    grammar = library.load(constraint, library.compile(constraint))
    marks = {tokenizer._backend.token_to_id(tag) for tag in format.tags}
    bits_1W = np.empty((1, -(-tokenizer.vocab_size // 32)), np.int32)
    finished = 0
    for seed in range(4):
        source, matcher, ids = np.random.default_rng(seed), grammar.matcher(), []
        while not matcher.ended() and len(ids) < 300:
            library.fill([matcher], bits_1W)
            allowed_V = np.unpackbits(bits_1W.view(np.uint8), bitorder="little")[: tokenizer.vocab_size]
            likely_V = [2.0 if token in marks or token == EOS else 1.0 for token in range(tokenizer.vocab_size)]
            token = int((source.random(tokenizer.vocab_size) * likely_V * allowed_V).argmax())
            if token == EOS:
                break
            assert matcher.accept(token), f"{tokenizer._backend.id_to_token(token)!r} after {ids}: {matcher.error()}"
            ids.append(token)
        else:
            if not matcher.ended():
                continue
        finished += 1
        assert not special or marks & set(ids)
        text = tokenizer.decode(ids, skip_special_tokens=False)
        parser = OutputParser(None, format, TOOLS)
        events = parser.feed(text) + parser.finish()
        assert [event.name for event in events if isinstance(event, ToolCallStart)] == ["now"], text
        assert not any(isinstance(event, TextDelta) for event in events), text
    assert finished
