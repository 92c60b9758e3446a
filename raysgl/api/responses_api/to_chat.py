"""A Responses request as the body of a chat completion."""

from __future__ import annotations

import base64
import binascii
from typing import Any

from raysgl.api.errors import ApiError, bad_request
from raysgl.api.protocol import validate_at
from raysgl.api.responses_api.protocol import (
    FunctionCallItem,
    FunctionCallOutputItem,
    FunctionTool,
    MessageItem,
    ReasoningItem,
    RefusalContent,
    ResponsesRequest,
    TextContent,
)

ITEMS: dict[str, Any] = {
    "message": MessageItem,
    "function_call": FunctionCallItem,
    "function_call_output": FunctionCallOutputItem,
    "reasoning": ReasoningItem,
}
CONTENTS: dict[str, Any] = dict.fromkeys(("input_text", "output_text", "text"), TextContent) | {"refusal": RefusalContent}
RENAMED = {
    "messages": "input",
    "max_completion_tokens": "max_output_tokens",
    "response_format": "text.format",
    "reasoning_effort": "reasoning.effort",
    "tools.*.function.parameters": "tools.*.parameters",
}
"""A chat's field -> what it is called here."""
SAME_NAME = ("model", "temperature", "top_p", "parallel_tool_calls", "stream", "prompt_cache_key", "stop", "ignore_eos")


def to_chat(request: ResponsesRequest) -> dict[str, Any]:
    """The chat's body, without members that are None. ApiError 400 that names the field of this request."""
    chat: dict[str, Any] = {name: getattr(request, name) for name in SAME_NAME}
    chat["messages"] = _messages(request)
    chat["max_completion_tokens"] = request.max_output_tokens
    chat["reasoning_effort"] = request.reasoning and request.reasoning.effort
    chat["response_format"] = _response_format(request)
    chat |= _tools(request)
    if wants_logprobs(request):
        chat |= {"logprobs": True, "top_logprobs": request.top_logprobs}
    elif request.top_logprobs:
        raise bad_request("top_logprobs needs message.output_text.logprobs in include", "top_logprobs")
    return {name: value for name, value in chat.items() if value is not None}


def wants_logprobs(request: ResponsesRequest) -> bool:
    return "message.output_text.logprobs" in (request.include or ())


def encrypt(reasoning: str) -> str:
    """What `encrypted_content` is here: not secret, but it comes back and is understood."""
    return base64.b64encode(reasoning.encode()).decode()


def _messages(request: ResponsesRequest) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = []
    if request.instructions:
        messages.append({"role": "system", "content": request.instructions})
    if isinstance(request.input, str):
        return [*messages, {"role": "user", "content": request.input}]
    turn = _Turn(messages)
    for i, item in enumerate(request.input):
        turn.add(_item(item, f"input.{i}"), f"input.{i}")
    if not messages:
        raise bad_request("input is empty", "input")
    return messages


class _Turn:
    """Puts the items of one turn of the assistant together: its reasoning, its text and its calls are one message."""

    def __init__(self, messages: list[dict[str, Any]]):
        self._messages = messages
        self._open: dict[str, Any] | None = None

    def add(self, item: Any, where: str) -> None:
        if isinstance(item, ReasoningItem):
            message = self._assistant(fresh=bool(self._open))
            message["reasoning_content"] = _reasoning(item, where)
        elif isinstance(item, FunctionCallItem):
            call = {"id": item.call_id, "type": "function", "function": {"name": item.name, "arguments": item.arguments}}
            self._assistant().setdefault("tool_calls", []).append(call)
        elif isinstance(item, FunctionCallOutputItem):
            self._open = None
            text = _text(item.output, f"{where}.output")
            self._messages.append({"role": "tool", "tool_call_id": item.call_id, "content": text})
        elif item.role == "assistant":
            said = bool(self._open) and (self._open["content"] is not None or "tool_calls" in self._open)
            self._assistant(fresh=said)["content"] = _text(item.content, f"{where}.content")
        else:
            self._open = None
            self._messages.append({"role": item.role, "content": _text(item.content, f"{where}.content")})

    def _assistant(self, fresh: bool = False) -> dict[str, Any]:
        if self._open is None or fresh:
            self._open = {"role": "assistant", "content": None}
            self._messages.append(self._open)
        return self._open


def _item(item: Any, where: str) -> Any:
    kind = item.get("type", "message") if isinstance(item, dict) else None
    if kind == "item_reference":
        raise bad_request(f"{where} refers to a stored item, but nothing is stored", where, "unsupported_parameter")
    if not isinstance(kind, str) or kind not in ITEMS:
        raise bad_request(f"{where} has the type {str(kind)[:40]!r}, but must have one of: {', '.join(ITEMS)}", where)
    return validate_at(ITEMS[kind], item, where)


def _text(content: Any, where: str) -> str:
    if isinstance(content, str):
        return content
    return "\n".join(_part(part, f"{where}.{i}") for i, part in enumerate(content))


def _part(part: Any, where: str) -> str:
    kind = part.get("type") if isinstance(part, dict) else None
    if not isinstance(kind, str) or kind not in CONTENTS:
        raise _unsupported_part(kind, where)
    checked = validate_at(CONTENTS[kind], part, where)
    return checked.refusal if isinstance(checked, RefusalContent) else checked.text


def _unsupported_part(kind: Any, where: str) -> ApiError:
    if kind in ("input_image", "input_file", "input_audio"):
        return bad_request(f"{where} is {kind}, but only text is supported", where, "unsupported_parameter")
    return bad_request(f"{where} has the type {str(kind)[:40]!r}, but must have one of: {', '.join(CONTENTS)}", where)


def _reasoning(item: ReasoningItem, where: str) -> str:
    if item.content or not item.encrypted_content:
        return "\n".join(part.text for part in item.content or item.summary or ())
    try:
        return base64.b64decode(item.encrypted_content, validate=True).decode()
    except (binascii.Error, UnicodeDecodeError):
        raise bad_request(f"{where}.encrypted_content is not from this server", f"{where}.encrypted_content") from None


def _tools(request: ResponsesRequest) -> dict[str, Any]:
    chat: dict[str, Any] = {}
    choice = request.tool_choice
    tools = [_tool(tool, f"tools.{i}") for i, tool in enumerate(request.tools or ())]
    if isinstance(choice, dict):
        if choice.get("type") == "allowed_tools":
            tools, choice = _allowed(tools, choice)
        elif choice.get("type") == "function" and isinstance(choice.get("name"), str):
            choice = {"type": "function", "function": {"name": choice["name"]}}
        else:
            raise bad_request("tool_choice must be auto, none, required, or name a function", "tool_choice")
    if tools:
        chat["tools"] = tools
    return chat | {"tool_choice": choice}


def _tool(tool: Any, where: str) -> dict[str, Any]:
    if isinstance(tool, dict) and tool.get("type") != "function":
        raise bad_request(
            f"{where} has the type {str(tool.get('type'))[:40]!r}, but only functions are supported",
            f"{where}.type",
            "unsupported_parameter",
        )
    function = validate_at(FunctionTool, tool, where).model_dump(exclude_none=True)
    del function["type"]
    return {"type": "function", "function": function}


def _allowed(tools: list[dict[str, Any]], choice: dict[str, Any]) -> tuple[list[dict[str, Any]], str]:
    """Only the tools that `allowed_tools` names."""
    mode, allowed = choice.get("mode", "auto"), choice.get("tools")
    if mode not in ("auto", "required") or not isinstance(allowed, list):
        raise bad_request("tool_choice of the type allowed_tools needs a mode (auto or required) and tools", "tool_choice")
    names = [tool.get("name") for tool in allowed if isinstance(tool, dict)]
    return [tool for tool in tools if tool["function"]["name"] in names], mode


def _response_format(request: ResponsesRequest) -> dict[str, Any] | None:
    format = request.text and request.text.format
    if format is None or format.type == "text":
        return None
    if format.type == "json_object":
        return {"type": "json_object"}
    if format.schema_ is None or format.name is None:
        missing = "schema" if format.schema_ is None else "name"
        where = f"text.format.{missing}"
        raise bad_request(f"{where} is required, but missing", where, "missing_required_parameter")
    json_schema = {"name": format.name, "schema": format.schema_, "strict": format.strict, "description": format.description}
    return {"type": "json_schema", "json_schema": {name: value for name, value in json_schema.items() if value is not None}}
