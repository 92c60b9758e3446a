"""Mistral's calls: `[TOOL_CALLS] [{"name": ..., "arguments": {...}}, ...]`; newer models: `[TOOL_CALLS]name[ARGS]{...}` for each."""

from __future__ import annotations

import re
import secrets
import string

from raysgl.api.parsers import json_text
from raysgl.api.parsers.output import Output
from raysgl.api.parsers.reader import Reader, Wait
from raysgl.api.parsers.tool_format import Structure, ToolFormat, Tools

TAG, ARGUMENTS, ID = "[TOOL_CALLS]", "[ARGS]", "[CALL_ID]"
_NAME = re.compile(r"\s*([\w.-]{1,256})\s*")


def parse(reader: Reader, output: Output, tools: Tools) -> Wait[None]:
    while (yield from reader.until((TAG,), output.text)) is not None:
        reader.mark()
        yield from reader.spaces()
        begun = yield from (_named if (yield from reader.peek()) not in ("[", "{") else _listed)(reader, output)
        if not begun:
            reader.rewind()
            output.text(TAG)


def new_id() -> str:
    """Mistral's templates want ids of nine letters and digits."""
    return "".join(secrets.choice(string.ascii_letters + string.digits) for _ in range(9))


class _Short:
    """An output whose calls have Mistral's ids."""

    def __init__(self, output: Output):
        self._output = output
        self.arguments, self.end_call = output.arguments, output.end_call

    def call(self, name: str) -> None:
        self._output.call(name, new_id())


def _listed(reader: Reader, output: Output) -> Wait[bool]:
    """A list of calls, or a single one without brackets."""
    yield from reader.one_of("[")
    begun = False
    while True:
        yield from reader.spaces()
        if not (yield from json_text.call(reader, _Short(output))):
            break
        reader.release()
        begun = True
        yield from reader.spaces()
        if (yield from reader.one_of(",")) is None:
            break
        reader.mark()
    yield from reader.one_of("]")
    return begun


def _named(reader: Reader, output: Output) -> Wait[bool]:
    head: list[str] = []
    tag = yield from reader.until((ARGUMENTS, ID, "{", TAG), head.append)
    name = _NAME.fullmatch("".join(head))
    if tag in (None, TAG) or name is None:
        return False
    id: list[str] = []
    if tag == ID:
        tag = yield from reader.until((ARGUMENTS, "{"), id.append)
    if tag == "{":
        reader.unread(tag)
    reader.release()
    output.call(name[1], "".join(id).strip() or new_id())
    yield from reader.spaces()
    if (yield from json_text.arguments(reader, output)):
        output.end_call()
    return True


FORMAT = ToolFormat(
    parse,
    (TAG, ARGUMENTS, ID),
    (
        Structure('{"name": "NAME", "arguments": ', "}", (TAG,), section=(TAG + " [", "]"), separator=", "),
        Structure(TAG + "NAME" + ARGUMENTS, "", (TAG,)),
    ),
)
