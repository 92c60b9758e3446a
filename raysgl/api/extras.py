"""What answers say beside text where a request asks for it: token ids, prompt log probabilities, meta information.

Their names and shapes are vLLM's and SGLang's; `answers.py` puts them where each has them.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import orjson

from raysgl.api.generation import Generation
from raysgl.api.sequence_text import Piece
from raysgl.api.tokenizer import Tokenizer
from raysgl.messages import TokenLogprob

if TYPE_CHECKING:
    from raysgl.api.answers import Answer

LOWEST_LOGPROB = -9999.0
"""Stands for minus infinity, which JSON has not (OpenAI's choice)."""


def finite(logprob: float | None) -> float | None:
    return None if logprob is None else max(logprob, LOWEST_LOGPROB)


@dataclass(slots=True)
class Extras:
    """token_ids: of the answer, and the prompt's (vLLM's return_token_ids). prompt_token_ids: the prompt's alone (SGLang's).
    prompt_logprobs: alternatives for each prompt token, or None. meta_info, cached_tokens_details: SGLang's."""

    token_ids: bool = False
    prompt_token_ids: bool = False
    prompt_logprobs: int | None = None
    meta_info: bool = False
    cached_tokens_details: bool = False


def prompt_logprobs(entries: list[TokenLogprob], alternatives: int, tokenizer: Tokenizer) -> list[dict[str, Any] | None]:
    """vLLM's `prompt_logprobs`: for each prompt token its own and the best ones', by token id; null for the first."""
    return [None if entry.logprob is None else _by_token(entry, alternatives, tokenizer) for entry in entries]


def _by_token(entry: TokenLogprob, alternatives: int, tokenizer: Tokenizer) -> dict[str, Any]:
    ranked = [(entry.token_id, entry.logprob, entry.rank)]
    ranked += [(token_id, value, rank) for rank, (token_id, value) in enumerate(entry.top[:alternatives], 1)]
    found: dict[str, Any] = {}
    for token_id, value, rank in ranked:
        text = tokenizer.token_text(token_id)
        found.setdefault(str(token_id), {"logprob": finite(value), "rank": rank, "decoded_token": text})
    return found


class WithTokenIds:
    """A stream whose chunks say which tokens they stand for: a piece's go into its first chunk, the prompt's into the very first."""

    def __init__(self, answer: Answer):
        self._answer = answer
        self._started: set[int] = set()

    def chunks(self, pieces: list[Piece]) -> bytes:
        return b"".join(map(self._chunks, pieces))

    def _chunks(self, piece: Piece) -> bytes:
        answer = self._answer
        head = answer.choice_head(piece.index)
        chunks = answer.chunks([piece]) or head + answer.nothing_new + answer.tail()
        ids = b',"token_ids":' + orjson.dumps(piece.token_ids)
        if piece.index in self._started:
            return chunks.replace(head, head + ids, 1)
        self._started.add(piece.index)
        prompt_ids = orjson.dumps(answer.prompt_of(piece.index).input_ids)
        if answer.prompt_beside_choices:
            chunks = chunks.replace(b'"choices":[', b'"prompt_token_ids":%b,"choices":[' % prompt_ids, 1)
            head = head.replace(b'"choices":[', b'"prompt_token_ids":%b,"choices":[' % prompt_ids, 1)
        else:
            ids += b',"prompt_token_ids":' + prompt_ids
        return chunks.replace(head, head + ids, 1)

    def last_chunks(self) -> bytes:
        return self._answer.last_chunks()

    def collect(self, pieces: list[Piece]) -> None:
        self._answer.collect(pieces)

    def whole(self) -> bytes:
        return self._answer.whole()


def of_choice(answer: Answer, index: int, token_ids: list[int], last: Piece) -> dict[str, Any]:
    """What a whole answer's choice has besides."""
    extras, prompt = answer.style.extras, answer.prompt_of(index)
    found: dict[str, Any] = {}
    if extras.token_ids:
        found["token_ids"] = token_ids
    if extras.prompt_token_ids or (extras.token_ids and not answer.prompt_beside_choices):
        found["prompt_token_ids"] = prompt.input_ids
    if extras.prompt_logprobs is not None and not answer.prompt_beside_choices:
        found["prompt_logprobs"] = _prompt_logprobs(answer, index // answer.generation.n, extras.prompt_logprobs)
    if extras.meta_info:
        found["meta_info"] = meta_info(answer.generation, index, last)
    return found


def of_answer(answer: Answer) -> dict[str, Any]:
    """What a whole answer has besides."""
    extras = answer.style.extras
    found: dict[str, Any] = {}
    if answer.prompt_beside_choices:
        if extras.token_ids:
            found["prompt_token_ids"] = answer.prompt_of(0).input_ids
        if extras.prompt_logprobs is not None:
            found["prompt_logprobs"] = _prompt_logprobs(answer, 0, extras.prompt_logprobs)
    if extras.cached_tokens_details:
        found["sglext"] = cached_tokens_details(answer.generation)
    return found


def _prompt_logprobs(answer: Answer, prompt: int, alternatives: int) -> list[dict[str, Any] | None]:
    return prompt_logprobs(answer.generation.prompt_logprobs.get(prompt, []), alternatives, answer.tokenizer)


def cached_tokens_details(generation: Generation) -> dict[str, Any]:
    """SGLang's `sglext`: where cached tokens came from."""
    return {"cached_tokens_details": {"device": generation.usage.cached_tokens, "host": 0}}


def meta_info(generation: Generation, index: int, last: Piece) -> dict[str, Any]:
    """SGLang's `meta_info` of a sequence, but for log probabilities. `last`: its newest piece."""
    number = index // generation.n
    prompt = generation.job.prompts[number]
    info = {
        "id": prompt.request_id or generation.job.request_id,
        "finish_reason": _finish_reason(generation, index, last),
        "prompt_tokens": len(prompt.input_ids),
        "weight_version": generation.weight_version(number),
        "num_retractions": last.retractions,
        "completion_tokens": generation.num_tokens(index),
        "reasoning_tokens": generation.reasoning_tokens(index),
        "cached_tokens": generation.cached_tokens(number),
    }
    if last.finish_reason is not None:
        info["e2e_latency"] = time.perf_counter() - generation.job.arrived_at
    info["response_sent_to_client_ts"] = time.time()
    return info


def _finish_reason(generation: Generation, index: int, last: Piece) -> dict[str, Any] | None:
    if last.finish_reason is None:
        return None
    reason: dict[str, Any] = {"type": last.finish_reason}
    if last.finish_reason == "stop":
        reason["matched"] = last.matched_stop
    elif last.finish_reason == "length":
        reason["length"] = generation.num_tokens(index)
    else:
        reason |= {"message": last.message, "status_code": None, "err_type": None}
    return reason
