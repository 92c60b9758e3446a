"""Calls as a JSON object between tags, with or without line breaks inside: Hermes' and Qwen's
`<tool_call>{"name": ..., "arguments": {...}}</tool_call>`, InternLM's `<|action_start|> <|plugin|>` ... `<|action_end|>`."""

from __future__ import annotations

from raysgl.api.parsers import json_text
from raysgl.api.parsers.output import Output
from raysgl.api.parsers.reader import Reader, Wait
from raysgl.api.parsers.tool_format import Structure, ToolFormat, Tools


def _format(begin: str, end: str, arguments: str) -> ToolFormat:
    def parse(reader: Reader, output: Output, tools: Tools) -> Wait[None]:
        while (yield from reader.until((begin,), output.text)) is not None:
            reader.mark()
            yield from reader.spaces()
            if (yield from json_text.call(reader, output)):
                reader.release()
                yield from _close(reader, output, begin, end)
            else:
                reader.rewind()
                output.text(begin)

    structure = Structure(f'{begin}\n{{"name": "NAME", "{arguments}": ', "}\n" + end, (begin,), separator="\n")
    return ToolFormat(parse, (*begin.split(" "), end), (structure,))


def _close(reader: Reader, output: Output, begin: str, end: str) -> Wait[None]:
    """Go on behind the tag that ends a call, or to the next call. Text that follows a call without its end stays text."""
    rest: list[str] = []
    tag = yield from reader.until((end, begin), rest.append)
    if tag is None:
        output.text("".join(rest))
    elif tag == begin:
        reader.unread(begin)


FORMAT = _format("<tool_call>", "</tool_call>", "arguments")
INTERNS1 = _format("<|action_start|> <|plugin|>", "<|action_end|>", "parameters")
