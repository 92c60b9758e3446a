"""Calls as Python: `[f(a=1), g(b="x")]` as the whole answer (Llama 4, Llama 3.2), or between tags (LFM2, Llama 4)."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from typing import Any

import orjson

from raysgl.api.parsers.output import Output
from raysgl.api.parsers.reader import Reader, Wait
from raysgl.api.parsers.tool_format import ToolFormat, Tools

_CONSTANTS = {"true": True, "false": False, "null": None, "none": None}


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
        found = {_keyword(keyword): _literal(keyword.value) for keyword in tree.keywords}
        return name, orjson.dumps(found).decode()
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
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


def _literal(node: ast.expr) -> Any:
    """Python's literals, and JSON's names for constants."""
    if isinstance(node, ast.Name) and node.id.lower() in _CONSTANTS:
        return _CONSTANTS[node.id.lower()]
    if isinstance(node, (ast.List, ast.Tuple)):
        return [_literal(item) for item in node.elts]
    if isinstance(node, ast.Dict):
        return {str(_literal(key)): _literal(item) for key, item in zip(node.keys, node.values) if key is not None}
    return ast.literal_eval(node)


PYTHONIC = ToolFormat(Pythonic("<|python_start|>", "<|python_end|>", bare=True).parse, ("<|python_start|>", "<|python_end|>"))
LFM2 = ToolFormat(
    Pythonic("<|tool_call_start|>", "<|tool_call_end|>", bare=False).parse, ("<|tool_call_start|>", "<|tool_call_end|>")
)
