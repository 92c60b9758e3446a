"""An Anthropic request as the body of a chat completion."""

from __future__ import annotations

from typing import Any

import orjson

from raysgl.api.anthropic.protocol import (
    CountTokensRequest,
    DocumentBlock,
    InputMessage,
    MessagesRequest,
    TextBlock,
    ThinkingBlock,
    Tool,
    ToolResultBlock,
    ToolUseBlock,
)
from raysgl.api.errors import ApiError, bad_request
from raysgl.api.output_form import bounds_thinking
from raysgl.api.prompts import THINKING_SWITCHES
from raysgl.api.protocol import validate_at
from raysgl.api.served_model import ServedModel

USER_BLOCKS = {"text": TextBlock, "document": DocumentBlock, "tool_result": ToolResultBlock}
ASSISTANT_BLOCKS = {"text": TextBlock, "thinking": ThinkingBlock, "tool_use": ToolUseBlock}
RENAMED = {
    "max_completion_tokens": "max_tokens",
    "stop": "stop_sequences",
    "response_format": "output_config.format",
    "reasoning_effort": "output_config.effort",
    "tools.*.function.parameters": "tools.*.input_schema",
    "max_thinking_tokens": "thinking.budget_tokens",
}
"""A chat's field -> what it is called here."""


def to_chat(request: CountTokensRequest, model: ServedModel) -> dict[str, Any]:
    """The chat's body, without members that are None. ApiError 400 that names the field of this request."""
    messages = [{"role": "system", "content": _text(request.system)}] if request.system else []
    for i, message in enumerate(request.messages):
        messages += _messages(message, f"messages.{i}")
    chat: dict[str, Any] = {"model": request.model, "messages": messages}
    last = messages[-1]
    if last["role"] == "assistant":
        if not last["content"]:
            raise bad_request("The last message must not be a tool_use without its tool_result", "messages")
        chat["continue_final_message"] = True
    chat |= _tools(request) | _thinking(request, model)
    if isinstance(request, MessagesRequest):
        chat |= {
            "max_completion_tokens": request.max_tokens,
            "temperature": request.temperature,
            "top_p": request.top_p,
            "top_k": request.top_k,
            "stop": request.stop_sequences,
            "stream": request.stream,
        }
    if request.output_config is not None:
        chat["reasoning_effort"] = request.output_config.effort
        if (format := request.output_config.format) is not None:
            json_schema = {"name": "output", "schema": format.schema_, "strict": True}
            chat["response_format"] = {"type": "json_schema", "json_schema": json_schema}
    return {name: value for name, value in chat.items() if value is not None}


def _text(content: str | list[TextBlock]) -> str:
    return content if isinstance(content, str) else "\n".join(block.text for block in content)


def _messages(message: InputMessage, where: str) -> list[dict[str, Any]]:
    """One message here can be several there: each tool result is a message of its own."""
    if isinstance(message.content, str):
        return [{"role": message.role, "content": message.content}]
    kinds = ASSISTANT_BLOCKS if message.role == "assistant" else USER_BLOCKS
    blocks = [_block(block, kinds, f"{where}.content.{i}") for i, block in enumerate(message.content)]
    return [_assistant(blocks)] if message.role == "assistant" else _user(blocks, message.role)


def _block(block: Any, kinds: dict[str, Any], where: str) -> Any:
    kind = block.get("type") if isinstance(block, dict) else None
    if kind not in kinds:
        raise _unsupported(kind, kinds, where)
    return validate_at(kinds[kind], block, where)


def _unsupported(kind: Any, kinds: dict[str, Any], where: str) -> ApiError:
    allowed = ", ".join(kinds)
    if kind == "image":
        return bad_request(f"{where} is an image, but images are not supported", where, "unsupported_parameter")
    return bad_request(f"{where} has the type {str(kind)[:40]!r}, but must have one of: {allowed}", where)


def _user(blocks: list[Any], role: str) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = []
    for block in blocks:
        if isinstance(block, ToolResultBlock):
            text = _text(block.content or "")
            messages.append(
                {
                    "role": "tool",
                    "tool_call_id": block.tool_use_id,
                    "content": f"Error: {text}" if block.is_error else text,
                }
            )
            continue
        text = block.text if isinstance(block, TextBlock) else _document(block)
        if messages and messages[-1]["role"] == role:
            messages[-1]["content"] += "\n" + text
        else:
            messages.append({"role": role, "content": text})
    return messages or [{"role": role, "content": ""}]


def _document(block: DocumentBlock) -> str:
    return "\n".join(filter(None, (block.title, block.context, block.source.data)))


def _assistant(blocks: list[Any]) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant"}
    texts = [block.text for block in blocks if isinstance(block, TextBlock)]
    message["content"] = "\n".join(texts) if texts else None
    if thoughts := [block.thinking for block in blocks if isinstance(block, ThinkingBlock)]:
        message["reasoning_content"] = "\n".join(thoughts)
    if calls := [block for block in blocks if isinstance(block, ToolUseBlock)]:
        message["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": orjson.dumps(call.input).decode()}}
            for call in calls
        ]
    return message


def _tools(request: CountTokensRequest) -> dict[str, Any]:
    chat: dict[str, Any] = {}
    if request.tools:
        chat["tools"] = [_tool(tool, f"tools.{i}") for i, tool in enumerate(request.tools)]
    choice = request.tool_choice
    if choice is None:
        return chat
    if choice.type == "tool":
        if choice.name is None:
            raise bad_request("tool_choice.name is required, but missing", "tool_choice.name", "missing_required_parameter")
        chat["tool_choice"] = {"type": "function", "function": {"name": choice.name}}
    else:
        chat["tool_choice"] = {"auto": "auto", "any": "required", "none": "none"}[choice.type]
    if choice.disable_parallel_tool_use:
        chat["parallel_tool_calls"] = False
    return chat


def _tool(tool: Any, where: str) -> dict[str, Any]:
    if isinstance(tool, dict) and tool.get("type") not in (None, "custom"):
        raise bad_request(
            f"{where} has the type {str(tool['type'])[:40]!r}, but only tools of the client's own are supported",
            f"{where}.type",
            "unsupported_parameter",
        )
    tool = validate_at(Tool, tool, where)
    function = {"name": tool.name, "description": tool.description, "parameters": tool.input_schema, "strict": tool.strict}
    return {"type": "function", "function": {name: value for name, value in function.items() if value is not None}}


def _thinking(request: CountTokensRequest, model: ServedModel) -> dict[str, Any]:
    """By the template's switch. A model without one thinks as it always does. The budget is kept where that is possible."""
    thinking, template = request.thinking, model.chat_template
    if thinking is None or template is None:
        return {}
    on = thinking.type != "disabled"
    if on and isinstance(request, MessagesRequest) and thinking.budget_tokens and thinking.budget_tokens >= request.max_tokens:
        raise bad_request("thinking.budget_tokens must be less than max_tokens", "thinking.budget_tokens")
    switches = {name: on for name in THINKING_SWITCHES if name in template.variables}
    chat: dict[str, Any] = {"chat_template_kwargs": switches} if switches else {}
    if on and isinstance(request, MessagesRequest) and thinking.budget_tokens and bounds_thinking(model):
        chat["max_thinking_tokens"] = thinking.budget_tokens
    return chat
