"""POST /parse_function_call and /separate_reasoning: what is in a text that some model wrote, without running one."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from typing import Any

import orjson
from starlette.datastructures import Headers
from starlette.types import Receive

from raysgl.api.errors import bad_request
from raysgl.api.http import Handler, Reply, read_body
from raysgl.api.parsers.events import ReasoningDelta, TextDelta, ToolCallArguments, ToolCallStart
from raysgl.api.parsers.reasoning import REASONING_FORMATS
from raysgl.api.parsers.registry import TOOL_FORMATS, OutputParser, tool_format
from raysgl.api.parsers.tool_format import Tools
from raysgl.api.protocol import ParseFunctionCallRequest, SeparateReasoningRequest, parse_json, validate
from raysgl.api.service import Service


def parse_function_call(service: Service) -> Handler:
    """The handler. Long texts are parsed beside the event loop."""

    async def handle(headers: Headers, receive: Receive, reply: Reply) -> None:
        request = validate(ParseFunctionCallRequest, parse_json(await read_body(headers, receive)))
        _check("tool_call_parser", request.tool_call_parser, TOOL_FORMATS)
        tools = {tool.function.name: tool.function.parameters or {} for tool in request.tools}
        await reply.whole(orjson.dumps(await asyncio.to_thread(parsed, request.tool_call_parser, request.text, tools)))

    return handle


def separate_reasoning(service: Service) -> Handler:
    """The handler. Long texts are parsed beside the event loop."""

    async def handle(headers: Headers, receive: Receive, reply: Reply) -> None:
        request = validate(SeparateReasoningRequest, parse_json(await read_body(headers, receive)))
        _check("reasoning_parser", request.reasoning_parser, REASONING_FORMATS)
        await reply.whole(orjson.dumps(await asyncio.to_thread(separated, request.reasoning_parser, request.text)))

    return handle


def _check(field: str, name: str, formats: Collection[str]) -> None:
    if name not in formats:
        raise bad_request(f"{field} is {name[:60]!r}, but must be one of {', '.join(formats)}", field)


def separated(name: str, text: str) -> dict[str, str]:
    """The answer's body."""
    parser = OutputParser(REASONING_FORMATS[name], None)
    events = parser.feed(text) + parser.finish()
    return {
        "reasoning_text": "".join(event.text for event in events if isinstance(event, ReasoningDelta)),
        "text": "".join(event.text for event in events if isinstance(event, TextDelta)),
    }


def parsed(name: str, text: str, tools: Tools) -> dict[str, Any]:
    """The answer's body."""
    parser = OutputParser(None, tool_format(name), tools)
    said: list[str] = []
    calls: list[dict[str, Any]] = []
    for event in parser.feed(text) + parser.finish():
        match event:
            case TextDelta():
                said.append(event.text)
            case ToolCallStart():
                calls.append({"tool_index": event.index, "name": event.name, "parameters": ""})
            case ToolCallArguments():
                calls[event.index]["parameters"] += event.text
    return {"normal_text": "".join(said), "calls": calls}
