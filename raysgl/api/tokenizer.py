"""Text to token ids and back, over the `tokenizers` library. No transformers, no torch.

Beside encode and decode it knows what every token stands for as bytes, which streaming and log probabilities are made from.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable
from enum import Enum
from functools import cached_property
from pathlib import Path

import tokenizers

INLINE_CHARS = 2_000
"""Longer texts are encoded in a thread (the library releases the GIL): about 1 µs a character, and a thread costs 100 µs."""

SPECIAL_NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


class Kind(Enum):
    """How the tokenizer's decoder puts tokens together."""

    BYTES = "byte-level BPE: a character of a token is a byte"
    PIECES = "sentencepiece: ▁ is a space, <0x0A> is a byte"
    OTHER = "anything else: only the library knows"


class Tokenizer:
    """One model's tokenizer.

    special_tokens: name (bos_token, eos_token, ...) -> text, for chat templates.
    special_ids: ids that `skip_special_tokens` leaves out.
    """

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        special_tokens: dict[str, str] | None = None,
        add_bos: bool | None = None,
        chat_template: object = None,
        add_eos: bool = False,
    ):
        """add_bos: whether encode puts BOS first; None leaves it to the post-processor of tokenizer.json. add_eos: it ends with EOS.
        chat_template: what tokenizer_config.json has under that name."""
        backend.no_truncation()
        backend.no_padding()
        self._backend = backend
        self.special_tokens = special_tokens or {}
        self.chat_template = chat_template
        known = [text for text in self.special_tokens.values() if backend.token_to_id(text) is not None]
        backend.add_special_tokens(known)
        self._added = backend.get_added_tokens_decoder()
        self.special_ids = frozenset(i for i, token in self._added.items() if token.special)
        self.bos_id = self._id_of("bos_token")
        self.eos_id = self._id_of("eos_token")
        self.add_bos = add_bos
        self.add_eos = add_eos and self.eos_id is not None
        bare, processed = (backend.encode("a", add_special_tokens=special).ids[:1] for special in (False, True))
        self._processor_adds_bos = processed == [self.bos_id] != bare
        self.kind, self.strips_leading_space = _decoder_kind(json.loads(backend.to_str())["decoder"])
        self._bytes: dict[int, bytes] = {}

    @classmethod
    def load(cls, folder: str | Path) -> Tokenizer:
        """Reads tokenizer.json, and tokenizer_config.json and special_tokens_map.json where they are there.

        FileNotFoundError without a tokenizer.json; ValueError if it cannot be read.
        """
        folder = Path(folder)
        path = folder / "tokenizer.json"
        if not path.is_file():
            raise FileNotFoundError(f"{folder} has no tokenizer.json")
        try:
            backend = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises bare Exception
            raise ValueError(f"{path} cannot be read: {error}") from error
        config = _read_json(folder / "tokenizer_config.json")
        named = _read_json(folder / "special_tokens_map.json") | config
        special = {name: _text(named[name]) for name in SPECIAL_NAMES if named.get(name)}
        add_eos = config.get("add_eos_token") is True
        return cls(backend, special, config.get("add_bos_token"), config.get("chat_template"), add_eos)

    @cached_property
    def vocab_size(self) -> int:
        """Ids are below it. The model's own vocabulary may be larger (padding)."""
        return max(self._backend.get_vocab(with_added_tokens=True).values(), default=-1) + 1

    def fewest_tokens(self, text: str) -> int:
        """A lower bound of a text's token count that takes no time. (Normalising to NFC can join three characters.)"""
        return len(text) // (self._longest_token * (1 if self.kind is Kind.BYTES else 3))

    @cached_property
    def _longest_token(self) -> int:
        return max(map(len, self._backend.get_vocab(with_added_tokens=True)), default=1)

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Token ids. With `add_special_tokens`, as the model's post-processor (and add_bos_token) says.

        A text that has BOS itself, as one that a chat template made, does not get another one.
        """
        # `encode` keeps the GIL, for 2 s with 2.6 million characters; this does not, and takes a third less of the time.
        (encoding,) = self._backend.encode_batch_fast([text], add_special_tokens=add_special_tokens)
        ids: list[int] = encoding.ids
        if add_special_tokens and self.add_bos is not None and self.bos_id is not None:
            if self.add_bos and not self._processor_adds_bos:
                ids.insert(0, self.bos_id)
            elif self._processor_adds_bos and not self.add_bos:
                del ids[0]
        if add_special_tokens and self.bos_id is not None and ids[:2] == [self.bos_id] * 2:
            del ids[0]
        if add_special_tokens and self.add_eos and ids[-1:] != [self.eos_id]:
            ids.append(self.eos_id)
        return ids

    def encode_pair(self, first: str, second: str) -> tuple[list[int], list[int]]:
        """Two texts as one, as the post-processor says: token ids, and the type (0 or 1) of each."""
        encoding = self._backend.encode(first, second)
        return encoding.ids, encoding.type_ids

    async def encode_async(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """`encode` that does not hold up the event loop for long texts."""
        if len(text) <= INLINE_CHARS:
            return self.encode(text, add_special_tokens)
        return await asyncio.to_thread(self.encode, text, add_special_tokens)

    def decode(self, ids: list[int], skip_special_tokens: bool = True) -> str:
        """The text of a whole list of ids. Ids that no token has stand for nothing."""
        return self._backend.decode(ids, skip_special_tokens=skip_special_tokens)

    def token(self, token_id: int) -> str | None:
        """The vocabulary's own spelling (`Ġthe`, `▁the`), or None."""
        return self._backend.id_to_token(token_id)

    def token_bytes(self, token_id: int) -> bytes:
        """What a token adds to the text behind other tokens, as UTF-8 bytes; a part of a character is possible."""
        data = self._bytes.get(token_id)
        if data is None:
            data = self._bytes[token_id] = self._to_bytes(token_id)
        return data

    def token_text(self, token_id: int) -> str:
        """`token_bytes` as text; parts of characters become U+FFFD."""
        return self.token_bytes(token_id).decode("utf-8", "replace")

    def byte_value(self, token_id: int) -> int | None:
        """The byte that a sentencepiece `<0x0A>` token stands for; None for other tokens."""
        text = self.token(token_id)
        if text is not None and len(text) == 6 and text.startswith("<0x") and text.endswith(">"):
            try:
                return int(text[3:5], 16)
            except ValueError:
                return None
        return None

    def special_marks(self, texts: Iterable[str]) -> dict[str, int]:
        """Those texts that are special tokens, and their ids."""
        ids = {text: self._backend.token_to_id(text) for text in texts}
        return {text: i for text, i in ids.items() if i is not None and i in self.special_ids}

    def to_json(self) -> str:
        """All of it, as in tokenizer.json."""
        return self._backend.to_str()

    def _to_bytes(self, token_id: int) -> bytes:
        text = self.token(token_id)
        if text is None:
            return b""
        if self.kind is Kind.BYTES:
            try:
                return bytes(BYTE_OF_CHAR[char] for char in text)
            except KeyError:  # an added token with characters that stand for no byte is its own text
                return text.encode()
        if self.kind is Kind.PIECES:
            value = self.byte_value(token_id)
            return text.replace("▁", " ").encode() if value is None else bytes([value])
        return self._backend.decode([token_id], skip_special_tokens=False).encode()

    def _id_of(self, name: str) -> int | None:
        text = self.special_tokens.get(name)
        return None if text is None else self._backend.token_to_id(text)


def _read_json(path: Path) -> dict:
    if not path.is_file():
        return {}
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    return data if isinstance(data, dict) else {}


def _text(token: object) -> str:
    """A special token is a string, or an object with its content."""
    return str(token["content"]) if isinstance(token, dict) else str(token)


def _decoder_kind(decoder: dict | None) -> tuple[Kind, bool]:
    """The kind, and whether a decoded text loses its first space."""
    steps = decoder["decoders"] if decoder and decoder["type"] == "Sequence" else [decoder or {"type": ""}]
    types = [step["type"] for step in steps]
    if types == ["ByteLevel"]:
        return Kind.BYTES, False
    if types[:3] == ["Replace", "ByteFallback", "Fuse"] and steps[0] == {
        "type": "Replace",
        "pattern": {"String": "▁"},
        "content": " ",
    }:
        if types[3:] == []:
            return Kind.PIECES, False
        if steps[3:] == [{"type": "Strip", "content": " ", "start": 1, "stop": 0}]:
            return Kind.PIECES, True
    return Kind.OTHER, False


def _byte_of_char() -> dict[str, int]:
    """GPT-2's table: printable Latin-1 characters stand for themselves, the other bytes for U+0100 and up, in order."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + i): byte for i, byte in enumerate(others)}


BYTE_OF_CHAR = _byte_of_char()
