"""The shape of /v1/completions answers."""

from __future__ import annotations

from typing import Any

import orjson

from raysgl.api.answers import Answer, Collected
from raysgl.api.detokenizer import detokenizer
from raysgl.api.extras import finite
from raysgl.api.sequence_text import Entry, Piece

_TEXT = b',"text":'
_LOGPROBS = b',"logprobs":'
_FINISH = b',"finish_reason":'
_MATCHED = b',"matched_stop":'
_GO_ON = b',"finish_reason":null,"matched_stop":null}'


class CompletionAnswer(Answer):
    object = chunk_object = "text_completion"
    nothing_new = _TEXT + b'""' + _LOGPROBS + b"null" + _GO_ON
    prompt_beside_choices = False

    def chunks(self, pieces: list[Piece]) -> bytes:
        out: list[bytes] = []
        tail = self.tail()
        for piece in pieces:
            head = self.choice_head(piece.index)
            text, logprobs = piece.text, b"null"
            if self.style.echo and piece.index not in self._started:
                self._started.add(piece.index)
                text = self._prompt_text(piece.index) + text
                if self.style.logprobs:
                    logprobs = orjson.dumps(self._logprobs(piece.index, piece.entries, with_prompt=True))
            elif piece.entries:
                logprobs = orjson.dumps(self._logprobs(piece.index, piece.entries))
            if text or logprobs != b"null":
                out += (head, _TEXT, orjson.dumps(text), _LOGPROBS, logprobs, _GO_ON, tail)
            if piece.finish_reason is not None:
                reason, matched = orjson.dumps(piece.finish_reason), orjson.dumps(piece.matched_stop)
                out += (head, _TEXT, b'""', _LOGPROBS, b"null", _FINISH, reason, _MATCHED, matched, b"}", tail)
        return b"".join(out)

    def choice(self, index: int, collected: Collected) -> dict[str, Any]:
        echo = self.style.echo
        return {
            "index": index,
            "text": (self._prompt_text(index) if echo else "") + "".join(collected.text),
            "logprobs": self._logprobs(index, collected.entries, with_prompt=echo) if self.style.logprobs else None,
            "finish_reason": collected.finish_reason,
            "matched_stop": collected.matched_stop,
        }

    def _prompt_text(self, index: int) -> str:
        return self.prompt_of(index).text

    def _logprobs(self, index: int, entries: list[Entry], with_prompt: bool = False) -> dict[str, Any]:
        """Parallel lists, one entry a token. text_offset counts characters of the choice's text, echo included."""
        base = len(self._prompt_text(index)) if self.style.echo else 0
        placed = self._prompt_entries(index) if with_prompt else []
        placed += [Entry(entry.logprob, base + entry.start) for entry in entries]
        return {
            "text_offset": [entry.start for entry in placed],
            "token_logprobs": [finite(entry.logprob.logprob) for entry in placed],
            "tokens": [self._token(entry.logprob.token_id) for entry in placed],
            "top_logprobs": [self._top(entry) for entry in placed] if self.style.top_logprobs else None,
        }

    def _prompt_entries(self, index: int) -> list[Entry]:
        prompt = index // self.generation.n
        length = len(self._prompt_text(index))
        text = detokenizer(self.tokenizer, self.generation.job.prompts[prompt].sampling.skip_special_tokens, continues=False)
        entries, start = [], 0
        for logprob in self.generation.prompt_logprobs.get(prompt, ()):
            entries.append(Entry(logprob, min(start, length)))
            start += len(text.push(logprob.token_id))
        return entries

    def _top(self, entry: Entry) -> dict[str, float | None] | None:
        """The alternatives and the token itself; None for the first token of a prompt."""
        if entry.logprob.logprob is None:
            return None
        top: dict[str, float | None] = {}
        for token_id, logprob in [*self.top(entry.logprob), (entry.logprob.token_id, entry.logprob.logprob)]:
            top.setdefault(self._token(token_id), finite(logprob))
        return top

    def _token(self, token_id: int) -> str:
        """The token's text; parts of characters as OpenAI writes them, so that they can be told apart."""
        data = self.tokenizer.token_bytes(token_id)
        try:
            return data.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)
