"""Calls as Python: `[f(a=1), g(b="x")]` as the whole answer (Llama 4, Llama 3.2), or between tags (LFM2, Llama 4)."""

from __future__ import annotations

import ast
from dataclasses import dataclass

from raysgl.api.parsers.output import Output
from raysgl.api.parsers.python_text import ERRORS, node_json, value_json
from raysgl.api.parsers.reader import Reader, Wait
from raysgl.api.parsers.tool_format import Structure, ToolFormat, Tools


@dataclass(frozen=True)
class Pythonic:
    """begin, end: tags around the list. bare: an answer that is a list of calls of known tools needs none."""

    begin: str
    end: str
    bare: bool

    def parse(self, reader: Reader, output: Output, tools: Tools) -> Wait[None]:
        before = yield from reader.spaces()
        if not self.bare or not (yield from self._list(reader, output, tools)):
            output.text(before)
        while (yield from reader.until((self.begin,), output.text)) is not None:
            if not (yield from self._list(reader, output, None)):
                output.text(self.begin)

    def _list(self, reader: Reader, output: Output, tools: Tools | None) -> Wait[bool]:
        """tools: the only functions that may be called. False, and nothing was taken, if not even one call is here."""
        reader.mark()
        begun = False
        yield from reader.spaces()
        if (yield from reader.one_of("[")) is not None:
            while (call := (yield from _call(reader, tools))) is not None:
                name, arguments = call
                reader.release()
                output.call(name)
                output.arguments(arguments)
                output.end_call()
                begun = True
                reader.mark()
                yield from reader.spaces()
                if (yield from reader.one_of(",", "]")) != ",":
                    reader.release()
                    yield from reader.spaces()
                    yield from reader.one_of(self.end)
                    return True
        reader.rewind()
        return begun


def _call(reader: Reader, tools: Tools | None) -> Wait[tuple[str, str] | None]:
    """A call's name and its arguments as JSON."""
    yield from reader.spaces()
    name = yield from reader.run_of(_NAME_CHARS)
    if not name or (tools is not None and name not in tools) or (yield from reader.peek()) != "(":
        return None
    parts = [name]
    if not (yield from _balanced(reader, parts)):
        return None
    try:
        tree = ast.parse("f" + "".join(parts)[len(name) :], mode="eval").body
        if not isinstance(tree, ast.Call) or tree.args:
            return None
        return name, "{" + ", ".join(f"{value_json(_keyword(word))}: {node_json(word.value)}" for word in tree.keywords) + "}"
    except ERRORS:
        return None


_NAME_CHARS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.-"


def _balanced(reader: Reader, parts: list[str]) -> Wait[bool]:
    """Take brackets and what is between them. False where they do not close."""
    depth, quote = 0, ""
    while (char := (yield from reader.peek())) != "":
        if quote:
            if char == "\\":
                char = yield from reader.peek(2)
            elif char == quote:
                quote = ""
        elif char in "\"'":
            quote = char
        elif char in "([{":
            depth += 1
        elif char in ")]}":
            depth -= 1
        reader.skip(len(char))
        parts.append(char)
        if depth == 0:
            return True
    return False


def _keyword(keyword: ast.keyword) -> str:
    if keyword.arg is None:
        raise ValueError("** has no name")
    return keyword.arg


def _format(begin: str, end: str, bare: bool) -> ToolFormat:
    marked = Structure("NAME(", ")", (begin,), section=(begin + "[", "]" + end), separator=", ", arguments="python")
    alone = Structure("NAME(", ")", (), section=("[", "]"), separator=", ", arguments="python", bare="[")
    return ToolFormat(Pythonic(begin, end, bare).parse, (begin, end), (alone, marked) if bare else (marked,))


PYTHONIC = _format("<|python_start|>", "<|python_end|>", bare=True)
LFM2 = _format("<|tool_call_start|>", "<|tool_call_end|>", bare=False)
