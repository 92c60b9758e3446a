"""The shape of /v1/chat/completions answers (reference: OpenAI's, with SGLang's matched_stop and reasoning_content)."""

from __future__ import annotations

from typing import Any

import orjson

from raysgl.api.answers import Answer, Collected
from raysgl.api.extras import finite
from raysgl.api.sequence_text import Entry, Piece

_ROLE = b',"delta":{"role":"assistant","content":"","reasoning_content":null},"logprobs":null,"finish_reason":null,"matched_stop":null}'
_CONTENT = b',"delta":{"role":null,"content":'
_LOGPROBS = b',"reasoning_content":null},"logprobs":'
_GO_ON = b',"finish_reason":null,"matched_stop":null}'
_FINISH = b',"delta":{"role":null,"content":null,"reasoning_content":null},"logprobs":null,"finish_reason":'
_MATCHED = b',"matched_stop":'


class ChatAnswer(Answer):
    object = "chat.completion"
    chunk_object = "chat.completion.chunk"
    nothing_new = _CONTENT + b'""' + _LOGPROBS + b"null" + _GO_ON
    prompt_beside_choices = True

    def chunks(self, pieces: list[Piece]) -> bytes:
        out: list[bytes] = []
        tail = self.tail()
        for piece in pieces:
            head = self.choice_head(piece.index)
            if piece.index not in self._started:
                self._started.add(piece.index)
                out += (head, _ROLE, tail)
            if piece.text or piece.entries:
                logprobs = orjson.dumps(self._logprobs(piece.entries)) if piece.entries else b"null"
                out += (head, _CONTENT, orjson.dumps(piece.text), _LOGPROBS, logprobs, _GO_ON, tail)
            if piece.finish_reason is not None:
                reason, matched = orjson.dumps(piece.finish_reason), orjson.dumps(piece.matched_stop)
                out += (head, _FINISH, reason, _MATCHED, matched, b"}", tail)
        return b"".join(out)

    def choice(self, index: int, collected: Collected) -> dict[str, Any]:
        return {
            "index": index,
            "message": {"role": "assistant", "content": "".join(collected.text), "reasoning_content": None},
            "logprobs": self._logprobs(collected.entries) if self.style.logprobs else None,
            "finish_reason": collected.finish_reason,
            "matched_stop": collected.matched_stop,
        }

    def _logprobs(self, entries: list[Entry]) -> dict[str, Any]:
        content = []
        for entry in entries:
            top = [self._token(token_id, logprob) for token_id, logprob in self.top(entry.logprob)]
            content.append(self._token(entry.logprob.token_id, entry.logprob.logprob) | {"top_logprobs": top})
        return {"content": content}

    def _token(self, token_id: int, logprob: float | None) -> dict[str, Any]:
        data = self.tokenizer.token_bytes(token_id)
        return {"token": data.decode("utf-8", "replace"), "bytes": list(data), "logprob": finite(logprob)}
