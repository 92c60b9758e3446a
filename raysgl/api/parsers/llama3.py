"""Llama 3's calls: `{"name": ..., "parameters": {...}}` as the whole answer, or behind `<|python_tag|>`; several with `;` between."""

from __future__ import annotations

from raysgl.api.parsers import json_text
from raysgl.api.parsers.output import Output
from raysgl.api.parsers.reader import Reader, Wait
from raysgl.api.parsers.tool_format import Structure, ToolFormat, Tools

TAG = "<|python_tag|>"


def parse(reader: Reader, output: Output, tools: Tools) -> Wait[None]:
    before = yield from reader.spaces()
    if not (yield from _calls(reader, output, tools.__contains__)):
        output.text(before)
    while (yield from reader.until((TAG,), output.text)) is not None:
        if not (yield from _calls(reader, output, json_text.any_name)):
            output.text(TAG)


def _calls(reader: Reader, output: Output, accept: json_text.Accept) -> Wait[bool]:
    """One call or more. False if not even one is here."""
    begun = False
    while True:
        reader.mark()
        yield from reader.spaces()
        if begun and (yield from reader.one_of(";")) is None:
            break
        yield from reader.spaces()
        if begun:
            yield from reader.one_of(TAG)
            yield from reader.spaces()
        if not (yield from json_text.call(reader, output, accept)):
            break
        reader.release()
        begun = True
    reader.rewind()
    return begun


_CALL = '{"name": "NAME", "parameters": '
FORMAT = ToolFormat(
    parse,
    (TAG,),
    (
        Structure(_CALL, "}", (), separator="; ", bare="{"),
        Structure(_CALL, "}", (TAG,), section=(TAG, ""), separator="; "),
    ),
)
