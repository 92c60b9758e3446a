"""Reasoning before an answer, whole and in pieces."""

from __future__ import annotations

import pytest

from raysgl.api.parse import separated
from raysgl.api.parsers.events import ReasoningDelta, TextDelta, ToolCallArguments, ToolCallStart
from raysgl.api.parsers.output import Output
from raysgl.api.parsers.reasoning import REASONING_FORMATS
from raysgl.api.parsers.registry import OutputParser, tool_format

GOOD = [
    ("qwen3", "<think>\nHm, 1 < 2 👩‍👩‍👧.\n</think>\n\nYes.", "Hm, 1 < 2 👩‍👩‍👧.", "Yes."),
    ("qwen3", "Yes, no thinking.", "", "Yes, no thinking."),
    ("qwen3", "<think>cut in the mid", "cut in the mid", ""),
    ("qwen3", "<thin", "", "<thin"),
    ("deepseek-r1", "Hm.</think>Yes.", "Hm.", "Yes."),
    ("deepseek-r1", "<think>Hm.</think>Yes.", "Hm.", "Yes."),
    ("mistral", "[THINK]Hm [not] this.[/THINK]Yes.", "Hm [not] this.", "Yes."),
    (
        "gpt-oss",
        "<|channel|>analysis<|message|>Hm 👩‍👩‍👧.<|end|><|start|>assistant<|channel|>final<|message|>Yes.<|return|>",
        "Hm 👩‍👩‍👧.",
        "Yes.",
    ),
    ("gpt-oss", "<|channel|>analysis<|message|>cut <|en", "cut <|en", ""),
    (
        "gpt-oss",
        "<|channel|>commentary<|message|>So:<|end|><|start|>assistant<|channel|>final<|message|>Yes.",
        "",
        "So:\n\nYes.",
    ),
    ("gpt-oss", "Yes, no channels", "", "Yes, no channels"),
    ("kimi", "◁think▷Hm.◁/think▷Yes.", "Hm.", "Yes."),
]


@pytest.mark.parametrize(("name", "text", "reasoning", "answer"), GOOD)
def test_every_split_gives_the_same(name, text, reasoning, answer):
    assert separated(name, text) == {"reasoning_text": reasoning, "text": answer}
    for at in range(len(text)):
        parser = OutputParser(REASONING_FORMATS[name], None)
        events = parser.feed(text[:at]) + parser.feed(text[at:]) + parser.finish()
        assert "".join(event.text for event in events if isinstance(event, ReasoningDelta)) == reasoning
        assert "".join(event.text for event in events if isinstance(event, TextDelta)) == answer


def test_calls_follow_reasoning_and_a_call_inside_it_is_none():
    call = '<tool_call>{"name": "now", "arguments": {}}</tool_call>'
    parser = OutputParser(REASONING_FORMATS["qwen3"], tool_format("hermes"), {"now": {}})
    events = [event for char in f"<think>maybe {call}</think>{call}" for event in parser.feed(char)] + parser.finish()
    assert [event.name for event in events if isinstance(event, ToolCallStart)] == ["now"]
    assert "".join(event.text for event in events if isinstance(event, ReasoningDelta)) == f"maybe {call}"


def test_channels_of_thoughts_calls_and_answers():
    text = (
        "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>commentary<|message|>So:<|end|><|start|>assistant"
        '<|channel|>commentary to=functions.now <|constrain|>json<|message|>{"a": "<|end|>"}<|call|>'
    )
    for pieces in ([text], list(text)):
        parser = OutputParser(REASONING_FORMATS["gpt-oss"], tool_format("gpt-oss"), {})
        events = [event for piece in pieces for event in parser.feed(piece)] + parser.finish()
        of = {kind: "".join(event.text for event in events if isinstance(event, kind)) for kind in (ReasoningDelta, TextDelta)}
        assert of == {ReasoningDelta: "Hm.", TextDelta: "So:"}
        assert [event.name for event in events if isinstance(event, ToolCallStart)] == ["now"]
        assert "".join(event.text for event in events if isinstance(event, ToolCallArguments)) == '{"a": "<|end|>"}'


def test_reasoning_in_one_piece():
    parser = OutputParser(REASONING_FORMATS["qwen3"], None, output=Output(stream_reasoning=False))
    assert parser.feed("<think>a") + parser.feed("b") == []
    assert parser.feed("</think>c")[0] == ReasoningDelta("ab")
