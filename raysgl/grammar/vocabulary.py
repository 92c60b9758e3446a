"""A tokenizer as grammars see it: the bytes that each token adds to the text."""

from __future__ import annotations

import msgspec


class Vocabulary(msgspec.Struct, frozen=True):
    """size: of the model, not less than `tokens` has. tokens: bytes of each id, empty where an id stands for nothing.

    special: ids that are no text (BOS, roles of a chat); their `tokens` are their names. eos: ids that end a text, at least one.
    tokenizer_json: of the `tokenizers` library; empty where its decoder is of a kind that only that library knows.
    """

    size: int
    tokens: list[bytes]
    special: list[int]
    eos: list[int]
    tokenizer_json: str = ""
