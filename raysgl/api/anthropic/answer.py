"""What /v1/messages answers: content blocks, whole or as Anthropic's events."""

from __future__ import annotations

from typing import Any

import orjson

from raysgl.api.block_answer import Block, BlockAnswer, Step
from raysgl.api.errors import ApiError

STOP_REASONS = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use", "abort": "end_turn"}
ERROR_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}
PING = b'event: ping\ndata: {"type":"ping"}\n\n'

_DELTAS = {"reasoning": (b"thinking_delta", b"thinking"), "text": (b"text_delta", b"text")}
_DELTAS["tool_call"] = (b"input_json_delta", b"partial_json")


def error_body(error: ApiError) -> bytes:
    """Anthropic's shape of an error."""
    kind = ERROR_TYPES.get(error.status, "invalid_request_error" if error.status < 500 else "api_error")
    return orjson.dumps({"type": "error", "error": {"type": kind, "message": error.message}})


class MessagesAnswer(BlockAnswer):
    def begin(self) -> bytes:
        return _event("message_start", {"message": self._message([], None, None, 0)}) + PING

    def step(self, step: Step) -> bytes:
        index = step.block.index
        if step.kind == "grow":
            kind, member = _DELTAS[step.block.kind]
            return (
                b"event: content_block_delta\n"
                b'data: {"type":"content_block_delta","index":%d,"delta":{"type":"%b","%b":%b}}\n\n'
                % (index, kind, member, orjson.dumps(step.text))
            )
        if step.kind == "open":
            return _event("content_block_start", {"index": index, "content_block": _empty(step.block)})
        signed = b""
        if step.block.kind == "reasoning":
            signed = _event(
                "content_block_delta", {"index": index, "delta": {"type": "signature_delta", "signature": self._signature()}}
            )
        return signed + _event("content_block_stop", {"index": index})

    def end(self) -> bytes:
        reason, sequence = self._stop()
        delta = {"stop_reason": reason, "stop_sequence": sequence}
        usage = self._usage(self.generation.usage.completion_tokens)
        return _event("message_delta", {"delta": delta, "usage": usage}) + _event("message_stop", {})

    def whole(self) -> bytes:
        content = [self._content(block) for block in self.blocks]
        return orjson.dumps(self._message(content, *self._stop(), self.generation.usage.completion_tokens))

    def failed(self, error: ApiError) -> bytes:
        return b"event: error\ndata: " + error_body(error) + b"\n\n"

    def _message(self, content: list[Any], reason: str | None, sequence: str | None, output_tokens: int) -> dict[str, Any]:
        return {
            "id": f"msg_{self.generation.job.request_id}",
            "type": "message",
            "role": "assistant",
            "model": self.style.model,
            "content": content,
            "stop_reason": reason,
            "stop_sequence": sequence,
            "usage": self._usage(output_tokens),
        }

    def _stop(self) -> tuple[str, str | None]:
        if self.ended == "stop" and isinstance(self.matched_stop, str):
            return "stop_sequence", self.matched_stop
        return STOP_REASONS[self.ended], None

    def _usage(self, output_tokens: int) -> dict[str, int]:
        """Anthropic does not count cached tokens as input tokens."""
        usage = self.generation.usage
        return {
            "input_tokens": usage.prompt_tokens - usage.cached_tokens,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": usage.cached_tokens,
            "output_tokens": output_tokens,
        }

    def _content(self, block: Block) -> dict[str, Any]:
        if block.kind == "text":
            return {"type": "text", "text": block.text}
        if block.kind == "reasoning":
            return {"type": "thinking", "thinking": block.text, "signature": self._signature()}
        return {"type": "tool_use", "id": block.id, "name": block.name, "input": _input(block.text)}

    def _signature(self) -> str:
        """Thinking is not signed, but clients drop blocks without a signature from the history that they send."""
        return self.generation.job.request_id


def _empty(block: Block) -> dict[str, Any]:
    if block.kind == "text":
        return {"type": "text", "text": ""}
    if block.kind == "reasoning":
        return {"type": "thinking", "thinking": "", "signature": ""}
    return {"type": "tool_use", "id": block.id, "name": block.name, "input": {}}


def _input(arguments: str) -> dict[str, Any]:
    """The arguments as an object; a call that was cut off has what there is of them as text."""
    try:
        value = orjson.loads(arguments or "{}")
    except orjson.JSONDecodeError:
        value = arguments
    return value if isinstance(value, dict) else {"arguments": value}


def _event(kind: str, data: dict[str, Any]) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (kind.encode(), orjson.dumps({"type": kind, **data}))
