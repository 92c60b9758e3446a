"""Calls as a JSON list, `[{"name": ..., "parameters": {...}}, ...]`, as the whole answer: for models that have no format of their own,
which are told to write it by a constraint."""

from __future__ import annotations

from raysgl.api.parsers import json_text
from raysgl.api.parsers.output import Output
from raysgl.api.parsers.reader import Reader, Wait
from raysgl.api.parsers.tool_format import Structure, ToolFormat, Tools


def parse(reader: Reader, output: Output, tools: Tools) -> Wait[None]:
    before = yield from reader.spaces()
    reader.mark()
    begun = False
    if (yield from reader.one_of("[")) is not None:
        while True:
            yield from reader.spaces()
            if not (yield from json_text.call(reader, output, tools.__contains__)):
                break
            begun = True
            yield from reader.spaces()
            reader.mark()
            if (yield from reader.one_of(",")) is None:
                break
    reader.rewind()
    if begun:
        yield from reader.one_of("]")
    else:
        output.text(before)
    yield from reader.until((), output.text)


FORMAT = ToolFormat(
    parse, (), (Structure('{"name": "NAME", "parameters": ', "}", (), section=("[", "]"), separator=", ", bare="["),)
)
