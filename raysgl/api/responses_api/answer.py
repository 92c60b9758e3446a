"""What /v1/responses answers: output items, whole or as numbered events."""

from __future__ import annotations

import hashlib
import time
from typing import Any

import orjson

from raysgl.api.answers import Style
from raysgl.api.block_answer import Block, BlockAnswer, Step
from raysgl.api.errors import ApiError
from raysgl.api.extras import finite
from raysgl.api.generation import Generation
from raysgl.api.responses_api.protocol import ResponsesRequest
from raysgl.api.responses_api.to_chat import encrypt, wants_logprobs
from raysgl.api.sequence_text import Entry

_PREFIX = {"text": "msg", "reasoning": "rs", "tool_call": "fc"}
_EVENTS = {
    "text": "response.output_text",
    "reasoning": "response.reasoning_text",
    "tool_call": "response.function_call_arguments",
}


class ResponsesAnswer(BlockAnswer):
    never_empty = True

    def __init__(self, style: Style, generation: Generation):
        super().__init__(style, generation)
        self._request: ResponsesRequest = style.source
        self._sequence = 0
        self._key = hashlib.blake2b(generation.job.request_id.encode(), digest_size=12).hexdigest()
        """The request's id in a form that item ids can have."""
        self._logprobs = wants_logprobs(self._request)

    def begin(self) -> bytes:
        response = self._response("in_progress")
        return self._event("response.created", response=response) + self._event("response.in_progress", response=response)

    def step(self, step: Step) -> bytes:
        return {"open": self._opened, "grow": self._grew, "close": self._closed}[step.kind](step)

    def end(self) -> bytes:
        status = self._status()
        return self._event(f"response.{status}", response=self._response(status))

    def whole(self) -> bytes:
        return orjson.dumps(self._response(self._status()))

    def failed(self, error: ApiError) -> bytes:
        kept = {"code": "server_error", "message": error.message}
        return self._event("response.failed", response=self._response("failed") | {"error": kept})

    # ---------------------------------------------------------------- events

    def _event(self, kind: str, **members: Any) -> bytes:
        data = {"type": kind, "sequence_number": self._next(), **members}
        return b"event: %b\ndata: %b\n\n" % (kind.encode(), orjson.dumps(data))

    def _next(self) -> int:
        self._sequence += 1
        return self._sequence - 1

    def _opened(self, step: Step) -> bytes:
        block = step.block
        added = self._event("response.output_item.added", output_index=block.index, item=self._item(block, "in_progress"))
        if block.kind == "tool_call":
            return added
        return added + self._event("response.content_part.added", **self._place(block), part=self._part(block, ""))

    def _grew(self, step: Step) -> bytes:
        """By hand: one for every token."""
        kind, block = _EVENTS[step.block.kind].encode() + b".delta", step.block
        more = b"" if block.kind == "tool_call" else b',"content_index":0'
        if block.kind == "text":
            more += b',"logprobs":' + orjson.dumps(self._tokens(step.entries))
        return b'event: %b\ndata: {"type":"%b","sequence_number":%d,"item_id":"%b","output_index":%d,"delta":%b%b}\n\n' % (
            kind,
            kind,
            self._next(),
            self._item_id(block).encode(),
            block.index,
            orjson.dumps(step.text),
            more,
        )

    def _closed(self, step: Step) -> bytes:
        block, text = step.block, step.block.text
        place, kind = self._place(block), f"{_EVENTS[step.block.kind]}.done"
        if block.kind == "tool_call":
            del place["content_index"]
            done = self._event(kind, **place, name=block.name, arguments=text)
        else:
            logprobs = {"logprobs": self._tokens(block.entries)} if block.kind == "text" else {}
            done = self._event(kind, **place, text=text, **logprobs)
            done += self._event("response.content_part.done", **place, part=self._part(block, text))
        item = self._item(block, self._item_status())
        return done + self._event("response.output_item.done", output_index=block.index, item=item)

    # ---------------------------------------------------------------- shapes

    def _status(self) -> str:
        if self.ended == "abort":
            return "failed"
        return "incomplete" if self.ended == "length" else "completed"

    def _item_status(self) -> str:
        """Only the item that was being generated when the answer was cut off is incomplete; the others have closed before."""
        return "completed" if self.ended in (None, "stop", "tool_calls") else "incomplete"

    def _item_id(self, block: Block) -> str:
        return f"{_PREFIX[block.kind]}_{self._key}_{block.index}"

    def _place(self, block: Block) -> dict[str, Any]:
        return {"item_id": self._item_id(block), "output_index": block.index, "content_index": 0}

    def _part(self, block: Block, text: str) -> dict[str, Any]:
        if block.kind == "reasoning":
            return {"type": "reasoning_text", "text": text}
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": self._tokens(block.entries)}

    def _item(self, block: Block, status: str) -> dict[str, Any]:
        item: dict[str, Any] = {"id": self._item_id(block), "status": status}
        if block.kind == "tool_call":
            return item | {"type": "function_call", "call_id": block.id, "name": block.name, "arguments": block.text}
        content = [] if status == "in_progress" else [self._part(block, block.text)]
        if block.kind == "text":
            return item | {"type": "message", "role": "assistant", "content": content}
        item |= {"type": "reasoning", "summary": [], "content": content}
        if "reasoning.encrypted_content" in (self._request.include or ()):
            item["encrypted_content"] = encrypt(block.text)
        return item

    def _tokens(self, entries: list[Entry]) -> list[dict[str, Any]]:
        if not self._logprobs:
            return []
        return [
            self._token(entry.logprob.token_id, entry.logprob.logprob)
            | {"top_logprobs": [self._token(*alternative) for alternative in self.top(entry.logprob)]}
            for entry in entries
        ]

    def _token(self, token_id: int, logprob: float | None) -> dict[str, Any]:
        data = self.tokenizer.token_bytes(token_id)
        return {"token": data.decode("utf-8", "replace"), "bytes": list(data), "logprob": finite(logprob)}

    def _response(self, status: str) -> dict[str, Any]:
        request, sampling = self._request, self.generation.job.prompts[0].sampling
        over = status != "in_progress"
        reasoning = request.reasoning
        return {
            "id": f"resp_{self.generation.job.request_id}",
            "object": "response",
            "created_at": self.created,
            "completed_at": int(time.time()) if status == "completed" else None,
            "status": status,
            "background": False,
            "error": {"code": "server_error", "message": "The request was aborted"} if status == "failed" else None,
            "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
            "instructions": request.instructions,
            "max_output_tokens": request.max_output_tokens,
            "max_tool_calls": request.max_tool_calls,
            "model": self.style.model,
            "output": self._output() if over else [],
            "parallel_tool_calls": request.parallel_tool_calls is not False,
            "previous_response_id": None,
            "prompt_cache_key": request.prompt_cache_key,
            "reasoning": {"effort": reasoning and reasoning.effort, "summary": reasoning and reasoning.summary},
            "safety_identifier": request.safety_identifier,
            "service_tier": "default",
            "store": False,
            "temperature": sampling.temperature,
            "text": self._text_format(),
            "tool_choice": request.tool_choice or "auto",
            "tools": request.tools or [],
            "top_logprobs": request.top_logprobs or 0,
            "top_p": sampling.top_p,
            "truncation": "disabled",
            "usage": self._usage() if over else None,
            "user": request.user,
            "metadata": request.metadata or {},
        }

    def _output(self) -> list[dict[str, Any]]:
        last = len(self.blocks) - 1
        return [self._item(block, self._item_status() if i == last else "completed") for i, block in enumerate(self.blocks)]

    def _text_format(self) -> dict[str, Any]:
        text = self._request.text
        format = text and text.format
        shown = format.model_dump(by_alias=True, exclude_none=True) if format else {"type": "text"}
        return {"format": shown, "verbosity": "medium"}

    def _usage(self) -> dict[str, Any]:
        usage = self.generation.usage
        return {
            "input_tokens": usage.prompt_tokens,
            "input_tokens_details": {"cached_tokens": usage.cached_tokens, "cache_write_tokens": 0},
            "output_tokens": usage.completion_tokens,
            "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
            "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        }
