"""The shape of /generate's answers: one object a sequence, with `text`, `output_ids` and `meta_info`.

A stream's events are these objects with all that is known so far, or, `incremental`, with what is new.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import orjson

from raysgl.api.answers import DONE
from raysgl.api.errors import ApiError
from raysgl.api.extras import finite, meta_info
from raysgl.api.generation import Generation
from raysgl.api.sequence_text import Piece
from raysgl.messages import TokenLogprob

Triple = tuple[float | None, int, str | None]


@dataclass(slots=True)
class NativeStyle:
    """single: the answer is an object, not a list of them. logprob_text: log probabilities come with the tokens' texts."""

    single: bool
    logprob_text: bool = False
    prompt_ids: bool = False
    incremental: bool = False
    interval: int = 1


@dataclass(slots=True)
class _Said:
    """A sequence so far."""

    text: str = ""
    ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    last: Piece | None = None

    def add(self, piece: Piece) -> None:
        self.text += piece.text
        self.ids += piece.token_ids
        if piece.logprobs:
            self.logprobs += piece.logprobs
        self.last = piece


class NativeAnswer:
    """Implements `raysgl.api.generate.AnswerShape`."""

    def __init__(self, style: NativeStyle, generation: Generation):
        self._style, self._generation = style, generation
        self._tokenizer = generation.job.model.tokenizer
        self._said: dict[int, _Said] = {}

    def chunks(self, pieces: list[Piece]) -> bytes:
        """An event for each sequence that has news."""
        return b"".join(b"data: " + orjson.dumps(self._event(piece)) + b"\n\n" for piece in pieces)

    def last_chunks(self) -> bytes:
        return DONE

    def failed(self, error: ApiError) -> bytes:
        """The end of a stream that has begun and cannot go on."""
        retryable = error.status in (429, 503)
        shown = {"message": error.message, "type": error.type, "code": error.status, "retryable": retryable}
        return b"data: " + orjson.dumps({"error": shown}) + b"\n\n" + DONE

    def collect(self, pieces: list[Piece]) -> None:
        for piece in pieces:
            self._said.setdefault(piece.index, _Said()).add(piece)

    def whole(self) -> bytes:
        objects = [self._object(index, self._said[index]) for index in sorted(self._said)]
        return orjson.dumps(objects[0] if self._style.single else objects)

    def _event(self, piece: Piece) -> dict[str, Any]:
        if self._style.incremental:
            shown = _Said()
            shown.add(piece)
        else:
            self.collect([piece])
            shown = self._said[piece.index]
        event = self._object(piece.index, shown)
        return event if self._style.single else event | {"index": piece.index}

    def _object(self, index: int, said: _Said) -> dict[str, Any]:
        prompt = self._generation.job.prompts[index // self._generation.n]
        event = {"text": said.text, "output_ids": said.ids, "meta_info": self._meta_info(index, said)}
        return event | {"prompt_token_ids": prompt.input_ids} if self._style.prompt_ids else event

    def _meta_info(self, index: int, said: _Said) -> dict[str, Any]:
        number = index // self._generation.n
        info = meta_info(self._generation, index, said.last)
        if self._generation.job.prompts[number].sampling.logprobs:
            info |= self._logprobs(number, said)
        return info

    # ---------------------------------------------------------------- log probabilities

    def _logprobs(self, prompt: int, said: _Said) -> dict[str, Any]:
        sampling = self._generation.job.prompts[prompt].sampling
        given = self._generation.prompt_logprobs.get(prompt, [])
        lists: dict[str, Any] = {
            "input_token_logprobs": [self._triple(entry.logprob, entry.token_id) for entry in given],
            "output_token_logprobs": [self._triple(entry.logprob, entry.token_id) for entry in said.logprobs],
            "output_token_logprobs_length": len(said.logprobs),
        }
        if sampling.top_logprobs:
            lists["input_top_logprobs"] = [self._top(entry) for entry in given]
            lists["output_top_logprobs"] = [self._top(entry) for entry in said.logprobs]
        if wanted := sampling.token_ids_logprob:
            lists["input_token_ids_logprobs"] = [self._asked(entry, wanted) for entry in given]
            lists["output_token_ids_logprobs"] = [self._asked(entry, wanted) for entry in said.logprobs]
        return lists

    def _triple(self, logprob: float | None, token_id: int) -> Triple:
        return (finite(logprob), token_id, self._tokenizer.token_text(token_id) if self._style.logprob_text else None)

    def _top(self, entry: TokenLogprob) -> list[Triple] | None:
        """None where nothing is known: of the first prompt token."""
        if entry.logprob is None:
            return None
        return [self._triple(logprob, token_id) for token_id, logprob in entry.top]

    def _asked(self, entry: TokenLogprob, wanted: tuple[int, ...]) -> list[Triple] | None:
        if entry.logprob is None:
            return None
        return [self._triple(logprob, token_id) for token_id, logprob in zip(wanted, entry.asked)]
