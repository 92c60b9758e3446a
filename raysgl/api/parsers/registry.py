"""The tool-call formats by name (SGLang's names), and the parser that reads a choice's text."""

from __future__ import annotations

from importlib import import_module

from raysgl.api.parsers import harmony
from raysgl.api.parsers.events import Event
from raysgl.api.parsers.output import Output
from raysgl.api.parsers.reader import Reader, Wait
from raysgl.api.parsers.reasoning import ChannelFormat, ReasoningFormat
from raysgl.api.parsers.tool_format import ToolFormat, Tools

TOOL_FORMATS = {
    "deepseekv3": "sections:DEEPSEEK_V3",
    "deepseekv31": "sections:DEEPSEEK_V31",
    "deepseekv32": "invoked:DEEPSEEK_V32",
    "glm": "tagged:GLM45",
    "glm45": "tagged:GLM45",
    "glm47": "tagged:GLM47",
    "gpt-oss": "harmony:FORMAT",
    "hermes": "hermes:FORMAT",
    "interns1": "hermes:INTERNS1",
    "json": "json_array:FORMAT",
    "kimi_k2": "sections:KIMI_K2",
    "lfm2": "pythonic:LFM2",
    "llama3": "llama3:FORMAT",
    "mimo": "tagged:QWEN3_CODER",
    "minimax-m2": "invoked:MINIMAX_M2",
    "mistral": "mistral:FORMAT",
    "pythonic": "pythonic:PYTHONIC",
    "qwen": "hermes:FORMAT",
    "qwen25": "hermes:FORMAT",
    "qwen3_coder": "tagged:QWEN3_CODER",
    "step3": "invoked:STEP3",
}
"""Name -> module of this package, and what it calls the format."""


def tool_format(name: str) -> ToolFormat:
    """KeyError for an unknown name."""
    module, _, attribute = TOOL_FORMATS[name].partition(":")
    return getattr(import_module(f"raysgl.api.parsers.{module}"), attribute)


class OutputParser:
    """Reads a choice's text as it comes: reasoning, then an answer with calls, each only where a format is given.

    What one call of `feed` and many make of the same text is the same.
    """

    def __init__(
        self,
        reasoning: ReasoningFormat | None,
        calls: ToolFormat | None,
        tools: Tools | None = None,
        output: Output | None = None,
    ):
        self._reader, self._output = Reader(), output or Output()
        self._steps = _parse(reasoning, calls, tools or {}, self._reader, self._output)
        self._go_on()

    @property
    def reasoning(self) -> list[tuple[int, int | None]]:
        """Where in the whole text it stands so far; None: to the end."""
        return self._output.spans

    @property
    def over(self) -> bool:
        """The output is whole, whatever follows."""
        return self._output.over

    def feed(self, text: str) -> list[Event]:
        self._reader.feed(text)
        self._go_on()
        return self._output.take()

    def finish(self) -> list[Event]:
        """Nothing more comes."""
        self._reader.close()
        self._go_on()
        self._output.finish()
        return self._output.take()

    def _go_on(self) -> None:
        next(self._steps, None)


def _parse(
    reasoning: ReasoningFormat | None, calls: ToolFormat | None, tools: Tools, reader: Reader, output: Output
) -> Wait[None]:
    if isinstance(reasoning, ChannelFormat) and calls is harmony.FORMAT:
        yield from reasoning.parse_with_calls(reader, output)
    elif reasoning is not None:
        yield from reasoning.parse(reader, output)
    if calls is not None:
        yield from calls.parse(reader, output, tools)
    else:
        yield from reader.until((), output.text)
