"""The shape of /v1/chat/completions answers (reference: OpenAI's, with SGLang's matched_stop and reasoning_content)."""

from __future__ import annotations

from typing import Any

import orjson

from raysgl.api.answers import Answer, Call, Collected
from raysgl.api.extras import finite
from raysgl.api.parsers.events import Event, ReasoningDelta, TextDelta, ToolCallArguments, ToolCallStart
from raysgl.api.sequence_text import Entry, Piece

_ROLE = b',"delta":{"role":"assistant","content":"","reasoning_content":null},"logprobs":null,"finish_reason":null,"matched_stop":null}'
_CONTENT = b',"delta":{"role":null,"content":'
_NO_REASONING = b',"reasoning_content":null}'
_REASONING = b',"delta":{"role":null,"content":null,"reasoning_content":'
_CALLS = _REASONING + b'null,"tool_calls":'
_LOGPROBS = b',"logprobs":'
_GO_ON = b',"finish_reason":null,"matched_stop":null}'
_FINISH = b',"delta":{"role":null,"content":null,"reasoning_content":null},"logprobs":null,"finish_reason":'
_MATCHED = b',"matched_stop":'


class ChatAnswer(Answer):
    object = "chat.completion"
    chunk_object = "chat.completion.chunk"
    nothing_new = _CONTENT + b'""' + _NO_REASONING + _LOGPROBS + b"null" + _GO_ON
    prompt_beside_choices = True

    def chunks(self, pieces: list[Piece]) -> bytes:
        out: list[bytes] = []
        read = [(piece, self.events(piece)) for piece in pieces]
        tail = self.tail()
        for piece, events in read:
            head = self.choice_head(piece.index)
            if piece.index not in self._started:
                self._started.add(piece.index)
                out += (head, _ROLE, tail)
            # A token's log probability goes out with the token, whatever is read from its text and when.
            logprobs = orjson.dumps(self._logprobs(piece.entries)) if piece.entries else b"null"
            if piece.entries and not events:
                events = [TextDelta("")]
            for event in events:
                out += (head, _delta(event), _LOGPROBS, logprobs, _GO_ON, tail)
                logprobs = b"null"
            if piece.finish_reason is not None:
                reason, matched = orjson.dumps(self.finish_reason(piece)), orjson.dumps(piece.matched_stop)
                out += (head, _FINISH, reason, _MATCHED, matched, b"}", tail)
        return b"".join(out)

    def choice(self, index: int, collected: Collected) -> dict[str, Any]:
        text, reasoning = "".join(collected.text), "".join(collected.reasoning)
        only_text = not reasoning and not collected.calls
        message: dict[str, Any] = {
            "role": "assistant",
            "content": text if text or only_text else None,
            "reasoning_content": reasoning or None,
        }
        if collected.calls:
            message["tool_calls"] = [_whole_call(i, call) for i, call in enumerate(collected.calls)]
        return {
            "index": index,
            "message": message,
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


def _delta(event: Event) -> bytes:
    match event:
        case TextDelta(text):
            return _CONTENT + orjson.dumps(text) + _NO_REASONING
        case ReasoningDelta(text):
            return _REASONING + orjson.dumps(text) + b"}"
        case ToolCallStart(index, id, name):
            function = {"name": name, "arguments": ""}
            return _CALLS + orjson.dumps([{"index": index, "id": id, "type": "function", "function": function}]) + b"}"
        case ToolCallArguments(index, text):
            return _CALLS + b'[{"index":%d,"function":{"arguments":%b}}]}' % (index, orjson.dumps(text))


def _whole_call(index: int, call: Call) -> dict[str, Any]:
    function = {"name": call.name, "arguments": "".join(call.arguments)}
    return {"id": call.id, "index": index, "type": "function", "function": function}
