"""What an answer may look like whose tool calls are constrained: `tool_choice` and strict tools, for every format of calls."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from raysgl.api.errors import bad_request
from raysgl.api.parsers import json_array
from raysgl.api.parsers.argument_grammar import json_arguments, python_arguments, text_arguments
from raysgl.api.parsers.closed_schema import closed
from raysgl.api.parsers.registry import tool_format
from raysgl.api.parsers.tool_format import Structure, ToolFormat, Tools
from raysgl.grammar.lark import Lark, escaped, without
from raysgl.sampling.constraint import Constraint

_NAME = re.compile(r"[A-Za-z0-9_.-]{1,256}")
_MARKS = re.compile("(NAME|NUMBER)")
ANY_OBJECT = {"type": "object"}
SPACE = r"/[ \n]{1,2}/"
"""Models like to leave lines between their thoughts and their calls."""


@dataclass(frozen=True)
class CallConstraint:
    """format: reads answers that follow the constraint. whole: it holds for all that the model writes, its reasoning too; otherwise
    for what follows the reasoning."""

    constraint: Constraint
    format: ToolFormat
    whole: bool


def tool_constraint(
    name: str | None,
    tools: Tools,
    *,
    required: bool = False,
    named: str | None = None,
    strict: Collection[str] = (),
    parallel: bool = True,
    special: Mapping[str, int] | None = None,
    answer: Any = None,
) -> CallConstraint | None:
    """Holds an answer to calls. None where it is free.

    name: of the tool-call format; None: the model has none, and calls are a JSON list. required: at least one call and nothing else;
    named: exactly one, of this tool. Otherwise the answer is text, calls, or text and then calls, and constrained only if one of the
    tools is `strict`: to begin a call is to finish it as the tool's schema says (arguments of a tool that is not strict are any
    object). parallel: there may be several calls. special: text of special tokens -> id, at least of those among the format's tags.
    Objects in arguments have no members but those that the schema names, unless it says that they may.
    answer: the schema of an answer without calls, which then is JSON, and has no text beside calls; not for a format with `whole`.

    ApiError 400 for what the format cannot be held to.
    """
    if named is not None and named not in tools:
        raise bad_request(f"tool_choice names {named!r}, which is none of tools", "tool_choice")
    if (required or named) and not tools:
        raise bad_request("tool_choice asks for a call, but there are no tools", "tool_choice")
    free = not required and named is None
    if free and (name is None or (answer is None and not set(strict) & tools.keys())):
        return None
    wanted = tools if named is None else {named: tools[named]}
    if free:
        wanted = {tool: parameters if tool in strict else ANY_OBJECT for tool, parameters in tools.items()}
    for tool in wanted:
        if not _NAME.fullmatch(tool):
            raise bad_request(
                f"the calls of {tool[:80]!r} cannot be constrained: a name has letters, digits, _, . and -", "tools"
            )
    format = json_array.FORMAT if name is None else tool_format(name)
    try:
        wanted = {tool: closed(parameters) for tool, parameters in wanted.items()}
        answers = _Answers(Lark(special), wanted, parallel and named is None and format.whole is None)
        if answer is not None:
            start = f"{answers.lark.json(answer)} | {answers.calls_alone(format)}"
        else:
            start = answers.free(format) if free else answers.calls_alone(format)
        return CallConstraint(answers.lark.constraint(start), format, format.whole is not None)
    except RecursionError:
        raise bad_request("tools have parameters whose schema is nested too deep", "tools") from None


class _Answers:
    """Writes the grammar of answers with calls of these tools."""

    def __init__(self, lark: Lark, tools: Tools, parallel: bool):
        self.lark, self._tools, self._parallel = lark, tools, parallel
        self._written: dict[tuple[object, str], str] = {}

    def calls_alone(self, format: ToolFormat) -> str:
        ways = " | ".join(self._calls(structure) for structure in format.structures)
        if format.whole is not None:
            return format.whole(self.lark, f"({ways})", False)
        return f"{self.lark.rule('SPACE', SPACE)}? ({ways})"

    def free(self, format: ToolFormat) -> str:
        """Text, calls, or both."""
        if format.whole is not None:
            return format.whole(self.lark, f"({' | '.join(self._calls(structure) for structure in format.structures)})", True)
        bare = "".join(structure.bare for structure in format.structures)
        triggers = tuple(dict.fromkeys(trigger for structure in format.structures for trigger in structure.triggers))
        said = without(triggers) + (rf" & ~/[ \t\r\n]*[{escaped(bare)}](?s:.*)/" if bare else "")
        ways = [self.lark.rule("SAID", said)]
        for trigger in dict.fromkeys(structure.triggers[:1] for structure in format.structures):
            alike = [structure for structure in format.structures if structure.triggers[:1] == trigger]
            head = self.lark.text_until(said, *trigger) if trigger else f"{self.lark.rule('SPACE', SPACE)}?"
            ways.append(f"{head} ({' | '.join(self._calls(structure, ''.join(trigger)) for structure in alike)})")
        return " | ".join(ways)

    def _calls(self, structure: Structure, behind: str = "") -> str:
        """The expression for one call, or for several. behind: what stands there already."""
        begin, end = structure.section
        arguments = {tool: self._arguments(structure, tool) for tool in self._tools}
        first = self._one_of(structure, arguments, begin, behind)
        more = ""
        if self._parallel:
            following = self._one_of(structure, arguments)
            more = f" ({self.lark.literal(structure.separator)} {following})*"
        return f"{first}{more} {self.lark.literal(end)}"

    def _one_of(self, structure: Structure, arguments: dict[str, str], before: str = "", behind: str = "") -> str:
        ways = []
        for tool, expression in arguments.items():
            parts = _MARKS.split((before + structure.begin).removeprefix(behind))
            texts = [self._part(part, tool) for part in parts if part]
            ways.append(" ".join([*texts, expression, self.lark.literal(structure.end)]))
        return self.lark.rule(self.lark.name("call"), " | ".join(ways))

    def _part(self, part: str, tool: str) -> str:
        return "/[0-9]{1,4}/" if part == "NUMBER" else self.lark.literal(tool if part == "NAME" else part)

    def _arguments(self, structure: Structure, tool: str) -> str:
        key = (structure.arguments, tool)
        if key not in self._written:
            self._written[key] = self.lark.rule(self.lark.name("arguments"), self._new_arguments(structure, tool))
        return self._written[key]

    def _new_arguments(self, structure: Structure, tool: str) -> str:
        parameters = self._tools[tool]
        if structure.arguments == "json":
            return json_arguments(self.lark, tool, parameters)
        if structure.arguments == "python":
            return python_arguments(self.lark, tool, parameters)
        return text_arguments(self.lark, tool, parameters, structure.arguments)
