"""Calls written with tags, arguments as plain text: Qwen3-Coder, GLM-4.5 and 4.7. The tools' schemas say what the texts mean."""

from __future__ import annotations

import re
from dataclasses import dataclass

from raysgl.api.parsers.argument_text import Arguments
from raysgl.api.parsers.output import Output
from raysgl.api.parsers.reader import Reader, Wait, drop
from raysgl.api.parsers.tool_format import Structure, TextArguments, ToolFormat, Tools

_NAME = re.compile(r"[\w.:-]{1,256}")


@dataclass(frozen=True)
class Tagged:
    """`begin`, calls, `end`; a call is `call` NAME `name_end`, parameters, `call_end`; a parameter `key` NAME `key_end` TEXT `value_end`.
    lines: texts stand on lines of their own. flag: behind the parameter's name, before true or false: whether the text is a string."""

    begin: str
    end: str
    call: str
    name_end: str
    call_end: str
    key: str
    key_end: str
    value_end: str
    lines: bool = False
    flag: str = ""

    def parse(self, reader: Reader, output: Output, tools: Tools) -> Wait[None]:
        while (tag := (yield from reader.until((self.begin, self.call), output.text))) is not None:
            reader.mark()
            if tag == self.begin:
                yield from reader.spaces()
                begun = (yield from reader.one_of(self.call)) is not None and (yield from self._call(reader, output, tools))
            else:
                begun = yield from self._call(reader, output, tools)
            if not begun:
                reader.rewind()
                output.text(tag)
                continue
            yield from self._others(reader, output, tools)

    def _others(self, reader: Reader, output: Output, tools: Tools) -> Wait[None]:
        """More calls, to the section's end or to text."""
        while True:
            reader.mark()
            yield from reader.spaces()
            tag = yield from reader.one_of(self.call, self.end)
            if tag == self.call and (yield from self._call(reader, output, tools)):
                continue
            if tag == self.end:
                reader.release()
            else:
                reader.rewind()
            return

    def _call(self, reader: Reader, output: Output, tools: Tools) -> Wait[bool]:
        """Behind `call`. False, and nothing was written, without a name."""
        head: list[str] = []
        tag = yield from reader.until((self.name_end, self.call_end, self.end), head.append)
        name = "".join(head).strip()
        if tag != self.name_end or not _NAME.fullmatch(name):
            return False
        reader.release()
        output.call(name)
        arguments = Arguments(output, tools.get(name, {}))
        stops = (self.key, self.call_end, self.end, self.call)
        while (tag := (yield from reader.until(stops, drop))) == self.key:
            key: list[str] = []
            if (yield from reader.until((self.key_end,), key.append)) is None:
                break
            key_name, _, said = "".join(key).strip().partition(self.flag) if self.flag else ("".join(key).strip(), "", "")
            ends = (self.value_end, *stops)
            ended = yield from arguments.read(reader, key_name, ends, self.lines, {"true": True, "false": False}.get(said))
            if ended not in (None, self.value_end):
                reader.unread(ended)
        arguments.close()
        if tag is not None:
            output.end_call()
        if tag in (self.end, self.call):
            reader.unread(tag)
        return True


_BEGIN, _END = "<tool_call>", "</tool_call>"
_CALL, _CALL_END, _PARAMETER, _PARAMETER_END = "<function=", "</function>", "<parameter=", "</parameter>"
QWEN3_CODER = ToolFormat(
    Tagged(_BEGIN, _END, _CALL, ">", _CALL_END, _PARAMETER, ">", _PARAMETER_END, lines=True).parse,
    (_BEGIN, _END),
    (
        Structure(
            f"{_BEGIN}\n{_CALL}NAME>\n",
            f"{_CALL_END}\n{_END}",
            (_BEGIN, _CALL),
            separator="\n",
            arguments=TextArguments(
                _PARAMETER, ">\n", f"\n{_PARAMETER_END}\n", (_PARAMETER_END, _PARAMETER, _CALL_END, _END, _CALL)
            ),
        ),
    ),
)

_KEY, _KEY_END, _VALUE, _VALUE_END = "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>"


def _glm(reader: Reader, output: Output, tools: Tools) -> Wait[None]:
    """`<tool_call>NAME`, then a key and a value for each argument, `</tool_call>`."""
    while (yield from reader.until((_BEGIN,), output.text)) is not None:
        reader.mark()
        head: list[str] = []
        tag = yield from reader.until((_KEY, _END, _BEGIN), head.append)
        name = "".join(head).strip()
        if tag not in (_KEY, _END) or not _NAME.fullmatch(name):
            reader.rewind()
            output.text(_BEGIN)
            continue
        reader.release()
        output.call(name)
        arguments = Arguments(output, tools.get(name, {}))
        while tag == _KEY:
            key: list[str] = []
            if (yield from reader.until((_KEY_END,), key.append)) is None:
                break
            if (tag := (yield from reader.until((_VALUE, _KEY, _END, _BEGIN), drop))) != _VALUE:
                continue
            tag = yield from arguments.read(reader, "".join(key).strip(), (_VALUE_END, _KEY, _END, _BEGIN), False)
            if tag == _VALUE_END:
                tag = yield from reader.until((_KEY, _END, _BEGIN), drop)
        arguments.close()
        if tag is not None:
            output.end_call()
        if tag == _BEGIN:
            reader.unread(tag)


def _glm_format(line: str) -> ToolFormat:
    """line: what stands behind the name and between tags."""
    texts = TextArguments(_KEY, _KEY_END + line + _VALUE, _VALUE_END + line, (_VALUE_END, _KEY, _END, _BEGIN))
    structure = Structure(f"{_BEGIN}NAME{line}", _END, (_BEGIN,), separator="\n", arguments=texts)
    return ToolFormat(_glm, (_BEGIN, _END, _KEY, _KEY_END, _VALUE, _VALUE_END), (structure,))


GLM45, GLM47 = _glm_format("\n"), _glm_format("")
