"""How models mark what they think before they answer, by name (SGLang's names)."""

from __future__ import annotations

from dataclasses import dataclass

from raysgl.api.parsers import harmony
from raysgl.api.parsers.output import Output
from raysgl.api.parsers.reader import Reader, Wait


@dataclass(frozen=True)
class ReasoningFormat:
    """Reasoning stands between `begin` and `end`, before the answer. forced: the chat template has written `begin` already, so the
    text begins inside; a model that writes it again is forgiven."""

    begin: str
    end: str
    forced: bool = False

    def parse(self, reader: Reader, output: Output) -> Wait[None]:
        """Up to the answer. Without `end` all is reasoning; without `begin`, unless forced, all is the answer."""
        before = yield from reader.spaces()
        tag = yield from reader.one_of(self.begin)
        if tag is None and not self.forced:
            output.text(before)
            return
        output.begin_reasoning(reader.position)
        if (yield from reader.until((self.end,), output.reasoning)) is not None:
            output.end_reasoning(reader.position)

    @property
    def tags(self) -> tuple[str, ...]:
        """Those of its marks that are special tokens for some tokenizers."""
        return (self.begin, self.end)

    @property
    def answer_after(self) -> str:
        """Text that is certain to come before the answer; empty where the answer may come at once."""
        return self.end if self.forced else ""


class ChannelFormat(ReasoningFormat):
    """gpt-oss: reasoning is a channel, and so are answers and calls; what it reads is all of the output."""

    def parse(self, reader: Reader, output: Output) -> Wait[None]:
        yield from harmony.read(reader, output, reasoning=True, calls=False)

    def parse_with_calls(self, reader: Reader, output: Output) -> Wait[None]:
        yield from harmony.read(reader, output, reasoning=True, calls=True)

    @property
    def tags(self) -> tuple[str, ...]:
        return harmony.TAGS

    @property
    def answer_after(self) -> str:
        return harmony.FINAL


THINK = ReasoningFormat("<think>", "</think>")
FORCED = ReasoningFormat("<think>", "</think>", forced=True)
REASONING_FORMATS = {
    "deepseek-r1": FORCED,
    "deepseek-v3": THINK,
    "glm45": THINK,
    "gpt-oss": ChannelFormat(harmony.ANALYSIS, harmony.END),
    "interns1": THINK,
    "kimi": ReasoningFormat("◁think▷", "◁/think▷"),
    "kimi_k2": THINK,
    "minimax": FORCED,
    "minimax-m3": ReasoningFormat("<mm:think>", "</mm:think>"),
    "mistral": ReasoningFormat("[THINK]", "[/THINK]"),
    "nemotron_3": THINK,
    "qwen3": THINK,
    "qwen3-thinking": FORCED,
    "step3": THINK,
}
