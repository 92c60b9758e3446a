"""POST /parse_function_call: the tool calls in a text that some model wrote, without running one."""

from __future__ import annotations

import asyncio
from typing import Any

import orjson
from starlette.datastructures import Headers
from starlette.types import Receive

from raysgl.api.errors import bad_request
from raysgl.api.http import Handler, Reply, read_body
from raysgl.api.parsers.events import TextDelta, ToolCallArguments, ToolCallStart
from raysgl.api.parsers.registry import TOOL_FORMATS, ToolParser, tool_format
from raysgl.api.parsers.tool_format import Tools
from raysgl.api.protocol import ParseFunctionCallRequest, parse_json, validate
from raysgl.api.service import Service


def parse_function_call(service: Service) -> Handler:
    """The handler. Long texts are parsed beside the event loop."""

    async def handle(headers: Headers, receive: Receive, reply: Reply) -> None:
        request = validate(ParseFunctionCallRequest, parse_json(await read_body(headers, receive)))
        if request.tool_call_parser not in TOOL_FORMATS:
            raise bad_request(
                f"tool_call_parser is {request.tool_call_parser[:60]!r}, but must be one of {', '.join(TOOL_FORMATS)}",
                "tool_call_parser",
            )
        tools = {tool.function.name: tool.function.parameters or {} for tool in request.tools}
        await reply.whole(orjson.dumps(await asyncio.to_thread(parsed, request.tool_call_parser, request.text, tools)))

    return handle


def parsed(name: str, text: str, tools: Tools) -> dict[str, Any]:
    """The answer's body."""
    parser = ToolParser(tool_format(name), tools)
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
