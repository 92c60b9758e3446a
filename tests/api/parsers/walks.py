"""Random answers of a constraint. Tags of all formats are tokens of the vocabulary, some of them special; any text can be said."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import numpy as np

from raysgl.api.parsers.registry import TOOL_FORMATS, tool_format
from raysgl.api.parsers.tool_format import TextArguments, ToolFormat
from raysgl.grammar.compiler import GrammarCompiler
from raysgl.grammar.interface import Grammar
from raysgl.grammar.vocabulary import Vocabulary

EOS = 0
TAGS = sorted({tag for name in TOOL_FORMATS for tag in tool_format(name).tags})
SPECIAL = {tag: number for number, tag in enumerate((tag for tag in TAGS if tag.startswith(("[", "<|", "<｜"))), 1)}
STRUCTURES = [structure for name in TOOL_FORMATS for structure in tool_format(name).structures]
TEXTS = {structure.arguments for structure in STRUCTURES if isinstance(structure.arguments, TextArguments)}
ENDS = {text.value_end.strip() for text in TEXTS} | {text.value_end for text in TEXTS}
WORDS = [*sorted((set(TAGS) | ENDS) - SPECIAL.keys()), "true", "null", '": ', "},", "the", "12", "é", "日本", '{"']
VOCABULARY = Vocabulary(
    size=1 + len(SPECIAL) + 256 + len(WORDS),
    tokens=[
        b"<eos>",
        *(tag.encode() for tag in SPECIAL),
        *(bytes([byte]) for byte in range(256)),
        *(word.encode() for word in WORDS),
    ],
    special=[0, *SPECIAL.values()],
    eos=[EOS],
)


def tokens_of(text: str, special: Mapping[str, int]) -> list[int]:
    parts = re.split("(" + "|".join(map(re.escape, special)) + ")", text) if special else [text]
    return [
        id
        for part in parts
        for id in ([special[part]] if part in special else [1 + len(SPECIAL) + byte for byte in part.encode()])
    ]


def random_answer(
    grammars: GrammarCompiler, grammar: Grammar, format: ToolFormat, seed: int, begin: Sequence[int] = (), limit: int = 700
) -> str | None:
    """begin: the first tokens. What ends something gets likelier with time. None if it found no end."""
    texts = [structure.arguments for structure in format.structures if isinstance(structure.arguments, TextArguments)]
    closing = {*'"]})', *(part for text in texts for part in (text.value_end, text.value_end.strip()))}
    ends_V = np.array([id == EOS or text.decode("utf-8", "replace") in closing for id, text in enumerate(VOCABULARY.tokens)])
    source = np.random.default_rng(seed)
    matcher = grammar.matcher()
    bits_1W = np.empty((1, grammars.num_words), np.int32)
    tokens: list[int] = []
    while len(tokens) < limit:
        grammars.fill([matcher], bits_1W)
        assert matcher.error() is None, matcher.error()
        allowed_V = np.unpackbits(bits_1W.view(np.uint8), bitorder="little")[: VOCABULARY.size]
        weights_V = source.random(VOCABULARY.size) * (1.0 + ends_V * len(tokens) / 5) * allowed_V
        so_far = b"".join(VOCABULARY.tokens[token] for token in tokens)
        assert weights_V.any(), f"nothing may follow {so_far!r}"
        token = begin[len(tokens)] if len(tokens) < len(begin) else int(weights_V.argmax())
        if token == EOS:
            return so_far.decode()
        assert allowed_V[token], f"{VOCABULARY.tokens[token]!r} may not follow {so_far!r}"
        assert matcher.accept(token)
        tokens.append(token)
        if matcher.ended():
            return b"".join(VOCABULARY.tokens[token] for token in tokens).decode()
    return None
