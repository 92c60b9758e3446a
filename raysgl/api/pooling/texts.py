"""From texts to token ids: with the model's own tokens around them, two as one where a model reads pairs, cut where that is asked for."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from raysgl.api.call import current
from raysgl.api.errors import bad_request
from raysgl.api.prompts import PROBE_CHARS, PROBE_SLACK, as_list, check_ids, in_turns
from raysgl.api.served_model import ServedModel
from raysgl.api.tokenizer import INLINE_CHARS, Tokenizer

FIELD = "truncate_prompt_tokens"


@dataclass(frozen=True)
class TextIds:
    """What an engine computes. first_segment: tokens of the first of two texts; 0: there is one."""

    token_ids: list[int]
    first_segment: int = 0


@dataclass(frozen=True)
class Limit:
    """Tokens of a text at most. cut: longer ones are cut; else they are refused."""

    tokens: int
    cut: bool

    @staticmethod
    def of(count: int | None, model: ServedModel, least: int = 1) -> Limit:
        """For a request's truncate_prompt_tokens. least: tokens that must have room. ApiError 400."""
        longest = model.context_length
        if count is None or count == -1:
            return Limit(longest, count is not None or bool(model.config and model.config.allow_auto_truncate))
        if not least <= count <= longest:
            raise bad_request(f"{FIELD} is {count}, but must be -1 or from {least} to {longest}", FIELD)
        return Limit(count, True)


async def read_texts(
    value: Any,
    field: str,
    model: ServedModel,
    truncate: int | None,
    *,
    special: bool = True,
    texts: bool = True,
    ids: bool = True,
) -> list[TextIds]:
    """Of a field that has a text or several, or token ids. ApiError 400."""
    frame = Frame.of(model.tokenizer) if special else Frame()
    limit = Limit.of(truncate, model, len(frame.before) + len(frame.after) + 1)
    found = []
    async for item in in_turns(as_list(value, field, texts=texts, ids=ids)):
        if isinstance(item, str):
            found.append(TextIds(await _framed(item, field, model, limit, frame)))
            continue
        check_ids(item, model, field)
        if len(item) > limit.tokens and not limit.cut:
            raise _too_long(len(item), field, model)
        found.append(TextIds(item[: limit.tokens]))
    return found


async def read_pairs(
    pairs: Sequence[tuple[str, str]], fields: tuple[str, str], model: ServedModel, truncate: int | None
) -> list[TextIds]:
    """Two texts as one, for models that read them together. ApiError 400."""
    frame = PairFrame.of(model.tokenizer)
    limit = Limit.of(truncate, model, frame.size + 2)
    room = Limit(limit.tokens - frame.size, limit.cut)
    known: dict[str, list[int]] = {}
    found = []
    async for pair in in_turns(pairs):
        for text, field in zip(pair, fields):
            if text not in known:
                known[text] = await _bare(text, field, model, room, frame.size)
        first, second = (known[text] for text in pair)
        over = len(first) + len(second) - room.tokens
        if over > 0 and not limit.cut:
            raise _too_long(len(first) + len(second) + frame.size, fields[1], model)
        if over > 0:
            first, second = _both(first, second, room.tokens)
        found.append(frame.join(first, second))
    return found


def _both(first: list[int], second: list[int], room: int) -> tuple[list[int], list[int]]:
    """The beginnings of two texts that fill the room: the longer one is cut first (the "longest first" of tokenizers)."""
    half = room // 2
    if len(first) <= half:
        return first, second[: room - len(first)]
    if len(second) <= room - half:
        return first[: room - len(second)], second
    return first[:half], second[: room - half]


@dataclass(frozen=True)
class Frame:
    """The tokens that a model has before and after a text."""

    before: tuple[int, ...] = ()
    after: tuple[int, ...] = ()

    @staticmethod
    @cache
    def of(tokenizer: Tokenizer) -> Frame:
        framed, bare = tokenizer.encode("a"), tokenizer.encode("a", add_special_tokens=False)
        at = _find(framed, bare, 0)
        return Frame(tuple(framed[:at]), tuple(framed[at + len(bare) :]))


@dataclass(frozen=True)
class PairFrame:
    """The same of two texts, with what comes between them; `between_first` of that belongs to the first."""

    before: tuple[int, ...]
    between: tuple[int, ...]
    after: tuple[int, ...]
    between_first: int

    @staticmethod
    @cache
    def of(tokenizer: Tokenizer) -> PairFrame:
        bare = tokenizer.encode("a", add_special_tokens=False)
        framed, types = tokenizer.encode_pair("a", "a")
        first = _find(framed, bare, 0)
        begin = first + len(bare)
        end = _find(framed, bare, begin)
        of_first = sum(kind == types[first] for kind in types[begin:end])
        return PairFrame(tuple(framed[:first]), tuple(framed[begin:end]), tuple(framed[end + len(bare) :]), of_first)

    @property
    def size(self) -> int:
        return len(self.before) + len(self.between) + len(self.after)

    def join(self, first: list[int], second: list[int]) -> TextIds:
        ids = [*self.before, *first, *self.between, *second, *self.after]
        return TextIds(ids, len(self.before) + len(first) + self.between_first)


def _find(ids: list[int], part: list[int], start: int) -> int:
    return next(i for i in range(start, len(ids)) if ids[i : i + len(part)] == part)


async def _framed(text: str, field: str, model: ServedModel, limit: Limit, frame: Frame) -> list[int]:
    extra = len(frame.before) + len(frame.after)
    ids = await _bare(text, field, model, Limit(limit.tokens - extra, limit.cut), extra)
    framed = [*frame.before, *ids, *frame.after]
    if not framed:
        raise bad_request(f"{field} is empty", field)
    return framed


async def _bare(text: str, field: str, model: ServedModel, limit: Limit, extra: int = 0) -> list[int]:
    """The text's own tokens. Of one that is far too long only the beginning is tokenised. ApiError 400."""
    tokenizer, since = model.tokenizer, time.perf_counter()
    size = max(limit.tokens, 1) * PROBE_CHARS
    while True:
        ids = await _encode(tokenizer, text[:size])
        if size >= len(text) or len(ids) > limit.tokens + PROBE_SLACK:
            break
        size *= 2
    current().tokenising(since)
    if len(ids) > limit.tokens and not limit.cut:
        raise _too_long(len(ids) + extra, field, model, "at least " if size < len(text) else "")
    return ids[: max(0, limit.tokens)]


async def _encode(tokenizer: Tokenizer, text: str) -> list[int]:
    if len(text) <= INLINE_CHARS:
        return tokenizer.encode(text, add_special_tokens=False)
    return await asyncio.to_thread(tokenizer.encode, text, False)


def _too_long(count: int, field: str, model: ServedModel, about: str = ""):
    return bad_request(
        f"{field} has a text of {about}{count} tokens, but the context length of {model.name!r} is {model.context_length}; "
        f"{FIELD} -1 cuts what does not fit",
        field,
        "context_length_exceeded",
    )
