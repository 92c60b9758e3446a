"""JSON read from a `Reader`: passed on as it comes, not checked beyond strings and brackets."""

from __future__ import annotations

import re
from collections.abc import Callable

import orjson

from raysgl.api.parsers.output import Output
from raysgl.api.parsers.reader import Reader, Sink, Wait, drop

_MARKS = re.compile(r'["{}\[\]]')
_STRING_MARKS = re.compile(r'["\\]')
_SCALAR = "+-.0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
_CLOSER = {"{": "}", "[": "]"}


def value(reader: Reader, sink: Sink) -> Wait[bool]:
    """Pass one value on. False where it ends too early, has brackets that do not match, or is none at all."""
    first = yield from reader.peek()
    if first not in ("{", "[", '"'):
        scalar = yield from reader.run_of(_SCALAR)
        sink(scalar)
        return bool(scalar)
    open_brackets: list[str] = []
    in_string = False
    while True:
        chunk = reader.take()
        at = 0
        while True:
            found = (_STRING_MARKS if in_string else _MARKS).search(chunk, at)
            if found is None:
                break
            at, mark = found.end(), found.group()
            if mark == "\\":
                if at == len(chunk):
                    at -= 1
                    break
                at += 1
                continue
            if mark == '"':
                in_string = not in_string
            elif mark in _CLOSER:
                open_brackets.append(_CLOSER[mark])
            elif mark != open_brackets.pop():
                reader.unread(chunk[at - 1 :])
                sink(chunk[: at - 1])
                return False
            if not in_string and not open_brackets:
                reader.unread(chunk[at:])
                sink(chunk[:at])
                return True
        split_escape = in_string and chunk.endswith("\\") and at == len(chunk) - 1
        if split_escape:
            reader.unread("\\")
            chunk = chunk[:-1]
        if chunk:
            sink(chunk)
        if not (yield from reader.more()):
            if split_escape:
                sink(reader.take())
            return False


def string(reader: Reader) -> Wait[str | None]:
    """A string's text; None if there is none."""
    if (yield from reader.peek()) != '"':
        return None
    parts: list[str] = []
    if not (yield from value(reader, parts.append)):
        return None
    try:
        return orjson.loads("".join(parts))
    except orjson.JSONDecodeError:
        return None


def arguments(reader: Reader, output: Output) -> Wait[bool]:
    """Pass a value on as a call's arguments: null stands for none, and JSON inside a string for itself. False as `value`."""
    if (yield from reader.peek()) in ("{", "["):
        return (yield from value(reader, output.arguments))
    parts: list[str] = []
    complete = yield from value(reader, parts.append)
    output.arguments(_unpacked("".join(parts)))
    return complete


def _unpacked(text: str) -> str:
    try:
        inner = orjson.loads(text)
        if inner is None:
            return "{}"
        if isinstance(inner, str) and isinstance(orjson.loads(inner), dict):
            return inner
    except orjson.JSONDecodeError:
        pass
    return text


def arguments_until(reader: Reader, output: Output, ends: tuple[str, ...]) -> Wait[str | None]:
    """A call's arguments, and then the tag that ends it. Nothing stands for no arguments. What follows a whole value is dropped, what
    follows a broken one still belongs to it."""
    yield from reader.spaces()
    if (end := (yield from reader.one_of(*ends))) is not None:
        output.arguments("{}")
        return end
    whole = yield from arguments(reader, output)
    return (yield from reader.until(ends, drop if whole else output.arguments))


Accept = Callable[[str], bool]
"""Whether a function of this name may be called."""


def any_name(name: str) -> bool:
    return True


def call(reader: Reader, output: Output, accept: Accept = any_name) -> Wait[bool]:
    """A call as an object: {"name": ..., "arguments": ...}, or with "parameters", the members in any order.

    False, and nothing was written, if it is none or has a name that is not accepted. True once it has begun, even if it breaks off.
    """
    if (yield from reader.one_of("{")) is None:
        return False
    begun = complete = False
    early: str | None = None  # arguments before the name
    while True:
        yield from reader.spaces()
        key = yield from string(reader)
        yield from reader.spaces()
        if key is None or (yield from reader.one_of(":")) is None:
            break
        yield from reader.spaces()
        if key == "name" and not begun:
            name = yield from string(reader)
            if not name or not accept(name):
                return False
            output.call(name)
            begun = True
            if early is not None:
                output.arguments(early)
        elif key in ("arguments", "parameters") and early is None:
            early, whole = yield from _arguments_of(reader, output, begun)
            if not whole:
                return begun
        elif not (yield from value(reader, drop)):
            return begun
        yield from reader.spaces()
        if (yield from reader.one_of(",")) is None:
            complete = (yield from reader.one_of("}")) is not None
            break
    if begun and complete and early is None:
        output.arguments("{}")
    if begun and complete:
        output.end_call()
    return begun


def _arguments_of(reader: Reader, output: Output, begun: bool) -> Wait[tuple[str, bool]]:
    """To the output if the call has begun, else as the result."""
    if begun:
        whole = yield from arguments(reader, output)
        return "", whole
    parts: list[str] = []
    whole = yield from value(reader, parts.append)
    return _unpacked("".join(parts)), whole
