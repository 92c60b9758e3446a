"""Which tools a request lets the model call, and whether it must: `tools`, `tool_choice`, `parallel_tool_calls`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from raysgl.api.errors import bad_request
from raysgl.api.parsers.tool_format import Tools
from raysgl.api.protocol import AllowedTools, ChatInput, NamedTool
from raysgl.api.schema_check import schema_problem

NO_PARAMETERS: dict[str, Any] = {"type": "object", "properties": {}}
"""OpenAI lets a function without arguments leave its parameters out."""


@dataclass(frozen=True)
class ToolUse:
    """tools: those that may be called. required: at least one call must be the answer; with one tool only, that it is called.
    strict: names of those whose arguments must follow their schema. parallel: several calls may be the answer."""

    tools: Tools
    required: bool
    strict: frozenset[str]
    parallel: bool


def tool_use(request: ChatInput) -> ToolUse | None:
    """None where nothing may be called. ApiError 400 that names the field."""
    choice = request.tool_choice
    if not request.tools:
        if choice not in (None, "auto", "none"):
            raise bad_request("tool_choice needs tools", "tool_choice")
        return None
    for i, tool in enumerate(request.tools):
        where = f"tools.{i}.function.parameters"
        if (problem := schema_problem(tool.function.parameters or {})) is not None:
            raise bad_request(f"{where} is no JSON Schema: {problem}", where)
    if choice == "none":
        return None
    functions = {tool.function.name: tool.function for tool in request.tools}
    if len(functions) < len(request.tools):
        raise bad_request("tools has two functions of the same name", "tools")
    names = list(functions)
    if isinstance(choice, NamedTool):
        names = _known([choice.function.name], functions)
    elif isinstance(choice, AllowedTools):
        names = _known([tool.function.name for tool in choice.allowed_tools.tools], functions)
    mode = choice.allowed_tools.mode if isinstance(choice, AllowedTools) else choice
    return ToolUse(
        {name: functions[name].parameters or NO_PARAMETERS for name in names},
        required=mode == "required" or isinstance(choice, NamedTool),
        strict=frozenset(name for name in names if functions[name].strict),
        parallel=request.parallel_tool_calls is not False and not isinstance(choice, NamedTool),
    )


def _known(names: list[str], functions: dict[str, Any]) -> list[str]:
    for name in names:
        if name not in functions:
            raise bad_request(f"tool_choice names {name[:100]!r}, which is none of tools", "tool_choice")
    return list(dict.fromkeys(names))
