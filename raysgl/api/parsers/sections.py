"""Calls in a section of their own: DeepSeek V3 and V3.1, Kimi K2. The arguments are JSON, what is before them says the name."""

from __future__ import annotations

import re
from dataclasses import dataclass

from raysgl.api.parsers import json_text
from raysgl.api.parsers.output import Output
from raysgl.api.parsers.reader import SPACES, Reader, Wait
from raysgl.api.parsers.tool_format import Structure, ToolFormat, Tools


@dataclass(frozen=True)
class Sections:
    """A section is `begin`, calls, `end`; a call is `call`, a head that `head_end` ends, arguments, `call_end`.
    head: its groups are `name`, and `id` where the model makes ids itself."""

    begin: str
    end: str
    call: str
    head: re.Pattern[str]
    head_end: str
    call_end: str

    def parse(self, reader: Reader, output: Output, tools: Tools) -> Wait[None]:
        while (tag := (yield from reader.until((self.begin, self.call), output.text))) is not None:
            reader.mark()
            begun = False
            if tag == self.begin:
                yield from reader.spaces()
                begun = (yield from reader.one_of(self.call)) is not None and (yield from self._call(reader, output))
            else:
                begun = yield from self._call(reader, output)
            if not begun:
                reader.rewind()
                output.text(tag)
                continue
            yield from self._others(reader, output)

    def _others(self, reader: Reader, output: Output) -> Wait[None]:
        """More calls, to the section's end or to text."""
        while True:
            reader.mark()
            yield from reader.spaces()
            tag = yield from reader.one_of(self.call, self.end)
            if tag == self.call and (yield from self._call(reader, output)):
                continue
            if tag == self.end:
                reader.release()
            else:
                reader.rewind()
            return

    def _call(self, reader: Reader, output: Output) -> Wait[bool]:
        """Behind `call`. False, and nothing was written, without a whole head."""
        head: list[str] = []
        tag = yield from reader.until((self.head_end, self.call_end, self.call, self.end), head.append)
        found = self.head.fullmatch("".join(head).strip(SPACES))
        if tag != self.head_end or found is None:
            return False
        reader.release()
        output.call(found["name"], found.groupdict().get("id"))
        ended = yield from json_text.arguments_until(reader, output, (self.call_end, self.call, self.end))
        if ended is not None:
            output.end_call()
        if ended not in (None, self.call_end):
            reader.unread(ended)
        return True


_DEEPSEEK = ("<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>", "<｜tool▁call▁begin｜>", "<｜tool▁call▁end｜>", "<｜tool▁sep｜>")
_BEGIN, _END, _CALL, _CALL_END, _SEP = _DEEPSEEK

_V3 = Sections(_BEGIN, _END, _CALL, re.compile(rf"\w*\s*{_SEP}\s*(?P<name>\S+)"), "```json", _CALL_END)
DEEPSEEK_V3 = ToolFormat(
    _V3.parse,
    _DEEPSEEK,
    (
        Structure(
            f"{_CALL}function{_SEP}NAME\n```json\n",
            f"\n```{_CALL_END}",
            (_BEGIN, _CALL),
            section=(_BEGIN, _END),
            separator="\n",
        ),
    ),
)

_V31 = Sections(_BEGIN, _END, _CALL, re.compile(r"(?P<name>\S+)"), _SEP, _CALL_END)
DEEPSEEK_V31 = ToolFormat(
    _V31.parse, _DEEPSEEK, (Structure(f"{_CALL}NAME{_SEP}", _CALL_END, (_BEGIN, _CALL), section=(_BEGIN, _END)),)
)

_KIMI = ("<|tool_calls_section_begin|>", "<|tool_calls_section_end|>", "<|tool_call_begin|>", "<|tool_call_end|>")
_KIMI_ARGUMENTS = "<|tool_call_argument_begin|>"
KIMI_SECTION = _KIMI[0]
_K2 = Sections(*_KIMI[:3], re.compile(r"(?P<id>(?:functions\.)?(?P<name>[\w.-]+?):\d+)"), _KIMI_ARGUMENTS, _KIMI[3])
KIMI_K2 = ToolFormat(
    _K2.parse,
    (*_KIMI, _KIMI_ARGUMENTS),
    (
        Structure(
            f"{_KIMI[2]}functions.NAME:NUMBER{_KIMI_ARGUMENTS}", _KIMI[3], (_KIMI[0], _KIMI[2]), section=(_KIMI[0], _KIMI[1])
        ),
    ),
)
