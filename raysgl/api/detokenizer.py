"""Token ids to text as they arrive: never half a character, and together exactly the text of the whole list.

A token costs a dictionary look-up and its own length, however long the text already is.
"""

from __future__ import annotations

import codecs
from typing import Protocol

from raysgl.api.tokenizer import Kind, Tokenizer

REPLACEMENT = "\ufffd"
_utf8 = codecs.getincrementaldecoder("utf-8")


class Detokenizer(Protocol):
    """Text of one sequence. `pending` says whether bytes of an unfinished character are held back."""

    pending: bool

    def push(self, token_id: int) -> str:
        """The text that is certain now."""

    def flush(self) -> str:
        """The end: what was held back, as U+FFFD."""


def detokenizer(
    tokenizer: Tokenizer, skip_special_tokens: bool = True, continues: bool = True, kept: frozenset[int] = frozenset()
) -> Detokenizer:
    """A fresh detokeniser. `continues`: the text goes on behind a prompt, so a leading space is part of it. `kept`: special tokens
    that are not skipped."""
    skipped = tokenizer.special_ids - kept if skip_special_tokens else frozenset()
    if tokenizer.kind is Kind.BYTES:
        return _ByteLevel(tokenizer, skipped)
    if tokenizer.kind is Kind.PIECES:
        return _Pieces(tokenizer, skipped, tokenizer.strips_leading_space and not continues)
    return _Windowed(tokenizer, skipped, continues)


class _ByteLevel:
    """Byte-level BPE: the tokens' bytes through an incremental UTF-8 decoder."""

    def __init__(self, tokenizer: Tokenizer, skipped: frozenset[int]):
        self._bytes = tokenizer.token_bytes
        self._skip = skipped
        self._decoder = _utf8("replace")

    @property
    def pending(self) -> bool:
        return bool(self._decoder.getstate()[0])

    def push(self, token_id: int) -> str:
        if token_id in self._skip:
            return ""
        return self._decoder.decode(self._bytes(token_id))

    def flush(self) -> str:
        return self._decoder.decode(b"", True)


class _Pieces:
    """Sentencepiece with byte fallback.

    Where the bytes of a run are no UTF-8, the library replaces every byte of the run by U+FFFD; here characters that were
    complete stay, since they have been sent, and every other byte is replaced.
    """

    def __init__(self, tokenizer: Tokenizer, skipped: frozenset[int], strip: bool):
        self._tokenizer = tokenizer
        self._skip = skipped
        self._strip = strip
        self._run = b""

    @property
    def pending(self) -> bool:
        return bool(self._run)

    def push(self, token_id: int) -> str:
        if token_id in self._skip:
            return ""
        data = self._tokenizer.token_bytes(token_id)
        if self._tokenizer.byte_value(token_id) is None:
            text = self.flush() + data.decode()
        else:
            text = self._complete(data)
        if self._strip and text:
            self._strip = False
            text = text.removeprefix(" ")
        return text

    def flush(self) -> str:
        run, self._run = self._run, b""
        return REPLACEMENT * len(run)

    def _complete(self, byte: bytes) -> str:
        self._run += byte
        try:
            text = self._run.decode()
        except UnicodeDecodeError as error:
            if error.reason == "unexpected end of data":
                return ""
            held, self._run = self._run[:-1], b""
            return REPLACEMENT * len(held) + (self._complete(byte) if held else REPLACEMENT)
        self._run = b""
        return text


class _Windowed:
    """Any other decoder: decode a short window of the last tokens, before and after the new one, and take the difference.

    The window starts over whenever its text ends in a whole character, so its length does not grow with the text.
    """

    MAX_WINDOW = 16
    """Tokens after which an unfinished character is given up: the longest has 4 bytes."""

    def __init__(self, tokenizer: Tokenizer, skipped: frozenset[int], continues: bool):
        self._decode = tokenizer.decode
        self._skip = skipped
        self._known: list[int] = []  # tokens whose text is out, for context
        self._new: list[int] = []
        self._continues = continues
        self._tokenizer = tokenizer

    @property
    def pending(self) -> bool:
        return bool(self._new)

    def push(self, token_id: int) -> str:
        if token_id in self._skip:
            return ""
        self._new.append(token_id)
        return self._take(final=len(self._new) >= self.MAX_WINDOW)

    def flush(self) -> str:
        return self._take(final=True) if self._new else ""

    def _take(self, final: bool) -> str:
        if not self._known and self._continues:
            text = "".join(map(self._behind, self._new))
        else:
            before = self._decode(self._known, False)
            text = self._decode(self._known + self._new, False)[len(before) :]
        if text.endswith(REPLACEMENT) and not final:
            return ""
        self._known, self._new = (self._known + self._new)[-4:], []
        return text

    def _behind(self, token_id: int) -> str:
        """A token's text behind another: decode it twice and drop the first, whose leading space may be eaten."""
        once, twice = self._decode([token_id], False), self._decode([token_id, token_id], False)
        return twice[len(once) :]
