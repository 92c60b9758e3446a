"""Every tool-call format: what is read, and that it does not matter how the text was cut."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raysgl.api.parse import parsed
from raysgl.api.parsers.events import Event, ReasoningDelta, TextDelta, ToolCallArguments, ToolCallStart
from raysgl.api.parsers.output import Output
from raysgl.api.parsers.registry import TOOL_FORMATS, OutputParser, tool_format

PROPERTIES = {"city": {"type": "string"}, "days": {"type": "array"}, "wet": {"type": ["boolean", "null"]}}
TOOLS = {"weather": {"type": "object", "properties": PROPERTIES}, "now": {}}
NESTED = {"city": 'Zürich "Süd" 👩‍👩‍👧', "days": [1, {"x": "}]</tool_call>"}], "none": None}
N = json.dumps(NESTED, ensure_ascii=False)
DS = ("<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>", "<｜tool▁call▁begin｜>", "<｜tool▁call▁end｜>", "<｜tool▁sep｜>")
KIMI = "<|tool_calls_section_begin|>{}<|tool_calls_section_end|>"
ARGS = ("weather", {"city": "Zürich <b>", "days": [1, 2], "wet": True})
ONE, TWO = ("weather", NESTED), ("now", {})

GOOD = [
    ("hermes", f'Look: <tool_call>\n{{"name": "weather", "arguments": {N}}}\n</tool_call>', "Look:", [ONE]),
    (
        "qwen25",
        f'<tool_call>{{"name": "weather", "arguments": {N}}}</tool_call>\n<tool_call>{{"name": "now", "arguments": {{}}}}</tool_call>',
        "",
        [ONE, TWO],
    ),
    ("llama3", f'{{"name": "weather", "parameters": {N}}}; {{"name": "now", "parameters": {{}}}}', "", [ONE, TWO]),
    ("json", f' [{{"name": "weather", "parameters": {N}}}, {{"name": "now", "parameters": {{}}}}]', "", [ONE, TWO]),
    ("llama3", f'Yes.<|python_tag|>{{"name": "weather", "parameters": {N}}}', "Yes.", [ONE]),
    ("mistral", f'Well [TOOL_CALLS] [{{"name": "weather", "arguments": {N}}}, {{"name": "now", "arguments": {{}}}}]', "Well", [ONE, TWO]),
    ("mistral", f"[TOOL_CALLS]weather[ARGS]{N}[TOOL_CALLS]now[ARGS]{{}}", "", [ONE, TWO]),
    ("pythonic", '[weather(city="Zürich", days=[1, 2], none=None), now()]', "", [("weather", {"city": "Zürich", "days": [1, 2], "none": None}), TWO]),
    ("lfm2", '<|tool_call_start|>[now()]<|tool_call_end|>Done', "Done", [TWO]),
    ("deepseekv3", f"Hm{DS[0]}{DS[2]}function{DS[4]}weather\n```json\n{N}\n```{DS[3]}\n{DS[2]}function{DS[4]}now\n```json\n{{}}\n```{DS[3]}{DS[1]}", "Hm", [ONE, TWO]),
    ("deepseekv31", f"{DS[0]}{DS[2]}weather{DS[4]}{N}{DS[3]}{DS[2]}now{DS[4]}{{}}{DS[3]}{DS[1]}", "", [ONE, TWO]),
    ("kimi_k2", KIMI.format(f"<|tool_call_begin|>functions.weather:0<|tool_call_argument_begin|>{N}<|tool_call_end|>"), "", [ONE]),
    ("qwen3_coder", "Ok.\n<tool_call>\n<function=weather>\n<parameter=city>\nZürich <b>\n</parameter>\n<parameter=days>\n[1, 2]\n</parameter>\n<parameter=wet>\nTrue\n</parameter>\n</function>\n</tool_call>\n<tool_call>\n<function=now>\n</function>\n</tool_call>", "Ok.", [ARGS, TWO]),
    ("minimax-m2", '<minimax:tool_call>\n<invoke name="weather">\n<parameter name="city">Zürich <b></parameter>\n<parameter name="days">[1, 2]</parameter>\n<parameter name="wet">true</parameter>\n</invoke>\n<invoke name="now">\n</invoke>\n</minimax:tool_call>', "", [ARGS, TWO]),
    ("pythonic", "[weather(days=[1e999, 123456789012345678901234567890, null])]", "", [("weather", {"days": [float("inf"), 123456789012345678901234567890, None]})]),
    ("glm45", '<tool_call>weather\n<arg_key>days</arg_key>\n<arg_value>["</arg_value>", 123456789012345678901234567890]</arg_value>\n</tool_call>', "", [("weather", {"days": ["</arg_value>", 123456789012345678901234567890]})]),
    ("glm45", "<tool_call>weather\n<arg_key>days</arg_key>\n<arg_value>['A', True]</arg_value>\n<arg_key>wet</arg_key>\n<arg_value>None</arg_value>\n</tool_call>", "", [("weather", {"days": ["A", True], "wet": None})]),
    ("glm47", "So<tool_call>weather<arg_key>city</arg_key><arg_value>Zürich <b></arg_value><arg_key>days</arg_key><arg_value>[1, 2]</arg_value><arg_key>wet</arg_key><arg_value>true</arg_value></tool_call><tool_call>now</tool_call>", "So", [ARGS, TWO]),
    ("deepseekv32", 'Ok <｜DSML｜function_calls>\n<｜DSML｜invoke name="weather">\n<｜DSML｜parameter name="city" string="true">Zürich <b></｜DSML｜parameter>\n<｜DSML｜parameter name="days" string="false">[1, 2]</｜DSML｜parameter>\n<｜DSML｜parameter name="wet" string="false">true</｜DSML｜parameter>\n</｜DSML｜invoke>\n<｜DSML｜invoke name="now">\n</｜DSML｜invoke>\n</｜DSML｜function_calls>', "Ok", [ARGS, TWO]),
    ("deepseekv32", '<｜DSML｜function_calls><｜DSML｜invoke name="other"><｜DSML｜parameter name="n" string="false">7</｜DSML｜parameter><｜DSML｜parameter name="s" string="true">7</｜DSML｜parameter></｜DSML｜invoke></｜DSML｜function_calls>', "", [("other", {"n": 7, "s": "7"})]),
    ("step3", '<｜tool_calls_begin｜>\n<｜tool_call_begin｜>function<｜tool_sep｜><steptml:invoke name="weather"><steptml:parameter name="city">Zürich <b></steptml:parameter><steptml:parameter name="days">[1, 2]</steptml:parameter><steptml:parameter name="wet">true</steptml:parameter></steptml:invoke><｜tool_call_end｜>\n<｜tool_calls_end｜>', "", [ARGS]),
    ("interns1", f'Hm <|action_start|> <|plugin|>\n{{"name": "weather", "parameters": {N}}}\n<|action_end|>', "Hm", [ONE]),
    ("gpt-oss", f"<|channel|>commentary<|message|>Let me see.<|end|><|start|>assistant<|channel|>commentary to=functions.weather <|constrain|>json<|message|>{N}<|call|>", "Let me see.", [ONE]),
    ("gpt-oss", f" to=functions.weather<|channel|>commentary json<|message|>{N}<|call|><|start|>assistant to=functions.now<|channel|>commentary<|message|><|call|>", "", [ONE, TWO]),
    ("gpt-oss", "<|channel|>analysis to=weather code<|message|>[1, 2]<|call|><|channel|>final<|message|>Ja.<|return|>", "Ja.", [("weather", [1, 2])]),
    ("glm45", "So<tool_call>weather\n<arg_key>city</arg_key>\n<arg_value>Zürich <b></arg_value>\n<arg_key>days</arg_key>\n<arg_value>[1, 2]</arg_value>\n<arg_key>wet</arg_key>\n<arg_value>true</arg_value>\n</tool_call><tool_call>now</tool_call>", "So", [ARGS, TWO]),
]  # fmt: skip

TEXT = [
    ("gpt-oss", "to=nobody"),
    ("gpt-oss", "<|channel|>analysis<|message|>Hm.<|end|>"),
    ("hermes", "No <tool_call> here, just 1 < 2."),
    ("hermes", "<tool_call>[1, 2]</tool_call>"),
    ("json", " [1, 2]"),
    ("json", '[{"name": "unknown", "parameters": {}}]'),
    ("llama3", '{"name": "unknown", "parameters": {}} is text'),
    ("mistral", "[TOOL_CALLS] nothing"),
    ("pythonic", "[1, 2, 3] is a list; [unknown(a=1)] calls nothing"),
    ("kimi_k2", "<|tool_calls_section_begin|>broken"),
    ("qwen3_coder", "<tool_call>\n<function=two words></function>"),
    ("minimax-m2", '<invoke name="'),
    ("glm45", "<tool_call>no name at all"),
    ("deepseekv3", "a <｜tool▁sep｜> alone"),
]


@pytest.mark.parametrize(("name", "text", "said", "calls"), GOOD)
def test_calls_are_found(name, text, said, calls):
    found = parsed(name, text, TOOLS)
    assert found["normal_text"] == said
    assert [(call["name"], json.loads(call["parameters"])) for call in found["calls"]] == calls
    assert [call["tool_index"] for call in found["calls"]] == list(range(len(calls)))


@pytest.mark.parametrize(("name", "text"), TEXT)
def test_what_is_no_call_is_text(name, text):
    assert parsed(name, text, TOOLS) == {"normal_text": text, "calls": []}


def shape(name: str, pieces: list[str]) -> list:
    parser = OutputParser(None, tool_format(name), TOOLS)
    return joined([event for piece in pieces for event in parser.feed(piece)] + parser.finish())


def joined(events: list[Event]) -> list:
    """The events, neighbours of a kind as one, ids left out."""
    found: list = []
    for event in events:
        match event:
            case ReasoningDelta():
                key, text = ("reasoning",), event.text
            case TextDelta():
                key, text = ("text",), event.text
            case ToolCallStart():
                key, text = ("call", event.index, event.name), ""
            case ToolCallArguments():
                key, text = ("arguments", event.index), event.text
        if found and found[-1][0] == key and key[0] != "call":
            found[-1] = (key, found[-1][1] + text)
        else:
            found.append((key, text))
    return found


SAMPLES = [(name, text) for name, text, *_ in GOOD] + TEXT
CUT = [(name, text[: len(text) * 2 // 3]) for name, text, *_ in GOOD]


@pytest.mark.parametrize(("name", "text"), SAMPLES + CUT)
def test_every_split_in_two_gives_the_same(name, text):
    whole = shape(name, [text])
    for at in range(1, len(text)):
        assert shape(name, [text[:at], text[at:]]) == whole, text[:at]
    assert shape(name, list(text)) == whole


@pytest.mark.parametrize(("name", "text", "said", "calls"), GOOD)
def test_one_call_is_enough_where_one_is_wanted(name, text, said, calls):
    """The output is over when its first call is whole: not before, and before the next one begins."""
    expected = shape(name, [text])
    first = expected[: next(i for i, (kind, _) in enumerate(expected) if kind[0] == "arguments") + 1]
    parser = OutputParser(None, tool_format(name), TOOLS, Output(max_calls=1))
    events = []
    for read, char in enumerate(text, 1):
        events += parser.feed(char)
        if parser.over:
            break
    assert parser.over and joined(events) == first
    assert parser.feed(text[read:] * 2) == parser.finish() == []
    if len(calls) > 1:
        assert read < text.rindex(calls[1][0])
    free = OutputParser(None, tool_format(name), TOOLS)
    free.feed(text)
    assert not free.over


@given(st.sampled_from(SAMPLES), st.lists(st.integers(0, 400), max_size=8))
def test_any_split_gives_the_same(sample, cuts):
    name, text = sample
    bounds = sorted({0, len(text), *(cut for cut in cuts if cut < len(text))})
    assert shape(name, [text[a:b] for a, b in pairwise(bounds)]) == shape(name, [text])


@given(st.sampled_from(sorted(TOOL_FORMATS)), st.text(alphabet='<>|[]{}":,\\ tool_call name(a=1)\n｜', max_size=60))
def test_nothing_raises(name, text):
    assert shape(name, list(text)) == shape(name, [text])
