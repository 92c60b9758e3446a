"""Conversations from a file as ShareGPT's: real prompts, and answers as long as the real ones were."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raysgl.bench.client import HTTPFailure, Target
from raysgl.bench.load import tokenize
from raysgl.bench.prompts import Conversation, Lengths, Turn

SPEAKERS = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "chatgpt": "assistant",
    "bard": "assistant",
}
SHORTEST = 4
"""Prompts and answers of fewer tokens are left out, as other load generators do."""
AT_A_TIME = 16

Count = Callable[[str], Awaitable[int]]
"""Tokens of a text."""


@dataclass(frozen=True)
class Choice:
    """What is taken of a file: `count` conversations of at most `turns` questions. output: of each answer, instead of the real
    one's length. context: conversations of more tokens, answers included, are left out (0: none)."""

    count: int
    turns: int = 1
    output: Lengths | None = None
    context: int = 0


def read(path: Path) -> list[list[tuple[str, str]]]:
    """(question, answer) pairs of each conversation that begins with a question. A JSON list, or one object a line. Raises ValueError."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from None
    try:
        records = (
            json.loads(text)
            if text.lstrip().startswith("[")
            else [json.loads(line) for line in text.splitlines() if line.strip()]
        )
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is no JSON: {error}") from None
    found = [pairs for record in records if (pairs := _pairs(record))]
    if not found:
        raise ValueError(
            f"{path} has no conversation: it should be a list of objects with `conversations`, each a list of {{from, value}}, "
            "or `messages`, each a list of {role, content}"
        )
    return found


async def choose(records: list[list[tuple[str, str]]], choice: Choice, count_tokens: Count, seed: str) -> list[Conversation]:
    """In random order; the same for the same seed. Fewer where the file has no more. ValueError where none is left."""
    records = list(records)
    random.Random(seed).shuffle(records)
    made: list[Conversation] = []
    for first in range(0, len(records), AT_A_TIME):
        some = enumerate(records[first : first + AT_A_TIME], first)
        made += filter(None, await asyncio.gather(*(_turns(pairs, choice, count_tokens, f"{seed}-{i}") for i, pairs in some)))
        if len(made) >= choice.count:
            break
    if not made:
        raise ValueError("no conversation of the file is left: all are too short, or longer than the context")
    return made[: choice.count]


async def _turns(pairs: list[tuple[str, str]], choice: Choice, count_tokens: Count, seed: str) -> Conversation:
    """Up to the first that is too short or leaves the context."""
    source, turns, total = random.Random(seed), [], 0
    for question, answer in pairs[: choice.turns]:
        prompt = await count_tokens(question)
        output = choice.output.draw(source) if choice.output else await count_tokens(answer)
        total += prompt + output
        if prompt < SHORTEST or (output < SHORTEST and not choice.output) or (choice.context and total > choice.context):
            break
        turns.append(Turn(question, output))
    return turns


def by_server(target: Target, model: str) -> Count:
    """Counts with the server's /tokenize. ValueError, when it counts, where there is none."""

    async def count(text: str) -> int:
        try:
            return len(await tokenize(target, model, text))
        except (HTTPFailure, KeyError, ValueError) as error:
            raise ValueError(
                f"the server's /tokenize does not count tokens ({error}); give --tokenizer or --output-len"
            ) from None

    return count


def by_file(path: Path) -> Count:
    """Counts with a tokenizer.json, or a folder that has one. Raises ValueError."""
    encode = encoder(path)

    async def count(text: str) -> int:
        return len(encode(text))

    return count


def encoder(path: Path) -> Callable[[str], list[int]]:
    """Token ids by a tokenizer.json, or a folder that has one. Raises ValueError."""
    from tokenizers import Tokenizer

    file = path / "tokenizer.json" if path.is_dir() else path
    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:  # noqa: BLE001  (the library raises no other type)
        raise ValueError(f"{file} is no tokenizer: {error}") from None
    return lambda text: tokenizer.encode(text, add_special_tokens=False).ids


async def by_words(text: str) -> int:
    """About: where lengths only sort out what is too short or too long."""
    return len(text.split())


def _pairs(record: Any) -> list[tuple[str, str]]:
    if not isinstance(record, dict):
        return []
    said = []
    for turn in record.get("conversations") or record.get("conversation") or record.get("messages") or ():
        if not isinstance(turn, dict):
            return []
        speaker = SPEAKERS.get(str(turn.get("from", turn.get("role"))))
        text = turn.get("value", turn.get("content"))
        if speaker and isinstance(text, str):
            said.append((speaker, text))
    pairs = []
    for (first, question), (second, answer) in zip(said[::2], said[1::2], strict=False):
        if (first, second) != ("user", "assistant"):
            break
        pairs.append((question, answer))
    return pairs
