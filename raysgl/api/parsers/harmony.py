"""gpt-oss: an answer is a row of messages, each `<|channel|>` HEADER `<|message|>` BODY and an end.

The header has the channel, and whom the message is for: analysis is reasoning, `commentary to=functions.NAME` is a call, final is the
answer, as is commentary for nobody (what the model says before it calls). The prompt ends with `<|start|>assistant`, where a message
for somebody may say so already.
"""

from __future__ import annotations

import re

from raysgl.api.parsers import json_text
from raysgl.api.parsers.output import Output
from raysgl.api.parsers.reader import Reader, Sink, Wait
from raysgl.api.parsers.tool_format import Structure, ToolFormat, Tools
from raysgl.grammar.lark import Lark, without

START, CHANNEL, MESSAGE, CONSTRAIN = "<|start|>", "<|channel|>", "<|message|>", "<|constrain|>"
ENDS = END, RETURN, CALL = "<|end|>", "<|return|>", "<|call|>"
TAGS = (START, CHANNEL, MESSAGE, CONSTRAIN, *ENDS)
ANALYSIS = f"{CHANNEL}analysis{MESSAGE}"
FINAL = f"{CHANNEL}final{MESSAGE}"
_TO = re.compile(r"\bto=([^\s<]+)")
_STOPS = (*ENDS, START, CHANNEL)


def read(reader: Reader, output: Output, reasoning: bool, calls: bool) -> Wait[None]:
    """To the end. reasoning, calls: whether to look for them; else such messages stay in the text as they are."""
    role, between = (yield from _for_whom(reader)), ""
    while (tag := (yield from reader.until((START, CHANNEL, *ENDS), output.text))) is not None:
        if tag == START:
            role = yield from _until_channel(reader)
        if tag != CHANNEL:
            continue
        parts: list[str] = []
        if (yield from reader.until((MESSAGE,), parts.append)) is None:
            return  # it broke off before it said anything
        header = "".join(parts)
        to = _TO.search(header) or _TO.search(role)
        role = ""
        if to is not None and calls:
            yield from _call(reader, output, to[1])
        elif to is None and header.split()[:1] != ["analysis"]:
            output.text(between)
            between = "\n\n"
            yield from _body(reader, output.text)
        elif to is None and reasoning:
            output.begin_reasoning(reader.position)
            yield from _body(reader, output.reasoning)
            output.end_reasoning(reader.position)
        else:
            output.text(CHANNEL + header + MESSAGE)
            output.text((yield from _body(reader, output.text)) or "")


def _for_whom(reader: Reader) -> Wait[str]:
    """What goes on with the role that the prompt ends with."""
    reader.mark()
    parts: list[str] = []
    yield from reader.spaces()
    if (yield from reader.one_of("to=")) is None or (yield from reader.until((CHANNEL, *ENDS), parts.append)) != CHANNEL:
        reader.rewind()
        return ""
    reader.unread(CHANNEL)
    reader.release()
    return "to=" + "".join(parts)


def _until_channel(reader: Reader) -> Wait[str]:
    """The role of a message that begins."""
    parts: list[str] = []
    tag = yield from reader.until((CHANNEL, *ENDS), parts.append)
    if tag is not None:
        reader.unread(tag)
    return "".join(parts)


def _body(reader: Reader, sink: Sink) -> Wait[str | None]:
    """Passes on the body. The tag that ends it."""
    tag = yield from reader.until(_STOPS, sink)
    if tag in (START, CHANNEL):
        reader.unread(tag)
        return None
    return tag


def _call(reader: Reader, output: Output, to: str) -> Wait[None]:
    """Behind the header. Arguments that are no JSON, as tools of the model's own have them, are passed on as they are."""
    output.call(to.removeprefix("functions."))
    yield from reader.spaces()
    if (yield from reader.peek()) == "{":
        tag = yield from json_text.arguments_until(reader, output, _STOPS)
    else:
        parts: list[str] = []
        tag = yield from reader.until(_STOPS, parts.append)
        output.arguments("".join(parts).strip() or "{}")
    if tag is not None:
        output.end_call()
    if tag in (START, CHANNEL):
        reader.unread(tag)


def _parse(reader: Reader, output: Output, tools: Tools) -> Wait[None]:
    yield from read(reader, output, reasoning=False, calls=True)


def _whole(lark: Lark, calls: str, free: bool) -> str:
    """What it thinks, and then a call, or, if it is free, its answer."""
    said = without(TAGS)
    thought = f"{lark.literal(ANALYSIS)} {lark.text_until(said, END + START)} {lark.literal('assistant')}"
    if not free:
        return f"({thought})? {calls}"
    before = (
        f"{lark.literal(CHANNEL + 'commentary' + MESSAGE)} {lark.text_until(said, END + START)} {lark.literal('assistant')}"
    )
    answer = f"{lark.literal(FINAL)} {lark.rule(lark.name('ANSWER'), said)}"
    return f"({thought})? (({before})? {calls} | {answer})"


FORMAT = ToolFormat(
    _parse,
    TAGS,
    (Structure(f"{CHANNEL}commentary to=functions.NAME {CONSTRAIN}json{MESSAGE}", "", (CHANNEL,)),),
    whole=_whole,
)
