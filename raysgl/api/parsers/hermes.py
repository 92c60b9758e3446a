"""Hermes' and Qwen's calls: `<tool_call>{"name": ..., "arguments": {...}}</tool_call>`, with or without line breaks inside."""

from __future__ import annotations

from raysgl.api.parsers import json_text
from raysgl.api.parsers.output import Output
from raysgl.api.parsers.reader import Reader, Wait
from raysgl.api.parsers.tool_format import Structure, ToolFormat, Tools

BEGIN, END = "<tool_call>", "</tool_call>"


def parse(reader: Reader, output: Output, tools: Tools) -> Wait[None]:
    while (yield from reader.until((BEGIN,), output.text)) is not None:
        reader.mark()
        yield from reader.spaces()
        if (yield from json_text.call(reader, output)):
            reader.release()
            yield from close(reader, output, BEGIN, END)
        else:
            reader.rewind()
            output.text(BEGIN)


def close(reader: Reader, output: Output, begin: str, end: str) -> Wait[None]:
    """Go on behind the tag that ends a call, or to the next call. Text that follows a call without its end stays text."""
    rest: list[str] = []
    tag = yield from reader.until((end, begin), rest.append)
    if tag is None:
        output.text("".join(rest))
    elif tag == begin:
        reader.unread(begin)


FORMAT = ToolFormat(
    parse,
    (BEGIN, END),
    (Structure(BEGIN + '\n{"name": "NAME", "arguments": ', "}\n" + END, (BEGIN,), separator="\n"),),
)
