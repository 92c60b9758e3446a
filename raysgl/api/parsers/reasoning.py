"""How models mark what they think before they answer, by name (SGLang's names)."""

from __future__ import annotations

from dataclasses import dataclass

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
        output.begin_reasoning()
        if (yield from reader.until((self.end,), output.reasoning)) is not None:
            output.end_reasoning()


THINK = ReasoningFormat("<think>", "</think>")
FORCED = ReasoningFormat("<think>", "</think>", forced=True)
REASONING_FORMATS = {
    "deepseek-r1": FORCED,
    "deepseek-v3": THINK,
    "glm45": THINK,
    "kimi": ReasoningFormat("◁think▷", "◁/think▷"),
    "kimi_k2": THINK,
    "mistral": ReasoningFormat("[THINK]", "[/THINK]"),
    "qwen3": THINK,
    "qwen3-thinking": FORCED,
}
