"""Templates with the features of well-known models' give what transformers makes of them.

The templates in `chat_templates/` are this project's own; each is named after the models whose constructs it uses.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from raysgl.api import chat_template
from raysgl.api.chat_template import ChatTemplate, TemplateError

transformers = pytest.importorskip("transformers.utils.chat_template_utils")

SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}
SOURCES = {path.stem: path.read_text() for path in sorted((Path(__file__).parent / "chat_templates").glob("*.jinja"))}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": 'Wetter für "eine" Stadt <b>',
            "parameters": {
                "type": "object",
                "properties": {
                    "city": {"type": "string"},
                    "days": {"type": "array", "items": {"type": "integer"}},
                    "unit": {"type": ["string", "null"]},
                },
                "required": ["city"],
            },
        },
    }
]
USER = {"role": "user", "content": " What's the wéather in <Paris>? 🙂 "}
SYSTEM = {"role": "system", "content": "Be brief. /no_think"}
ANSWER = {"role": "assistant", "content": "<think>\nhm\n</think>\n\nSunny.\n"}
REASONED = {"role": "assistant", "content": "Sunny.", "reasoning_content": "Let me see"}
ARGUMENTS = {"city": "Zürich", "days": [1, 2]}
CALL = {"id": "call_123456789", "type": "function", "function": {"name": "get_weather", "arguments": ARGUMENTS}}
CALLED = {"role": "assistant", "content": None, "tool_calls": [CALL]}
RESULT = {"role": "tool", "tool_call_id": "call_123456789", "content": '{"t": 21}'}
CHATS = {
    "user": [USER],
    "system": [SYSTEM, USER],
    "turns": [USER, ANSWER, USER],
    "reasoning": [USER, REASONED],
    "tools": [USER, CALLED, RESULT],
    "many": [SYSTEM, USER, CALLED, RESULT, ANSWER, USER],
}


def theirs(source: str, messages: list[dict], **settings: object) -> str:
    """None stays None for them where the template asks for it; arguments are text where the template prints them."""
    rendered, _ = transformers.render_jinja_template([messages], chat_template=source, **SPECIAL, **settings)
    return rendered[0]


def as_they_want(source: str, messages: list[dict]) -> list[dict]:
    """What a user of transformers would write by hand for this template."""
    form = chat_template.message_form(chat_template._ENVIRONMENT.parse(source))
    out = json.loads(json.dumps(messages))
    for message in out:
        if message["content"] is None and not form.none_content:
            message["content"] = ""
        for call in message.get("tool_calls", ()):
            if form.text_arguments:
                call["function"]["arguments"] = json.dumps(call["function"]["arguments"], ensure_ascii=False)
    return out


def over_http(messages: list[dict]) -> list[dict]:
    """What a client of the API sends: arguments are always text."""
    out = json.loads(json.dumps(messages))
    for message in out:
        for call in message.get("tool_calls", ()):
            call["function"]["arguments"] = json.dumps(call["function"]["arguments"], ensure_ascii=False)
    return out


@pytest.mark.parametrize("settings", [{}, {"enable_thinking": False}, {"add_generation_prompt": False}], ids=str)
@pytest.mark.parametrize("with_tools", [False, True], ids=["plain", "tools"])
@pytest.mark.parametrize("chat", CHATS)
@pytest.mark.parametrize("name", SOURCES)
def test_equals_transformers(name, chat, with_tools, settings):
    source, messages, tools = SOURCES[name], CHATS[chat], TOOLS if with_tools else None
    settings = {"add_generation_prompt": True} | settings
    try:
        expected = theirs(source, as_they_want(source, messages), tools=tools, **settings)
    except Exception as error:  # noqa: BLE001 (a template's complaint, or what it runs into)
        with pytest.raises(TemplateError) as ours:
            ChatTemplate(source, SPECIAL).render(over_http(messages), tools=tools, **settings)
        assert str(error) in str(ours.value)
        return
    assert ChatTemplate(source, SPECIAL).render(over_http(messages), tools=tools, **settings) == expected


def test_most_chats_are_not_refused():
    """Else the comparison above would be of errors."""
    shown = 0
    for source in SOURCES.values():
        for messages in CHATS.values():
            try:
                ChatTemplate(source, SPECIAL).render(over_http(messages), tools=TOOLS)
                shown += 1
            except TemplateError:
                pass
    assert len(SOURCES) >= 12
    assert shown >= 0.8 * len(SOURCES) * len(CHATS)


@pytest.mark.parametrize("name", SOURCES)
def test_what_the_templates_want_is_seen(name):
    form = chat_template.message_form(chat_template._ENVIRONMENT.parse(SOURCES[name]))
    assert form.content == ("either" if name in ("gemma3", "glm45", "kimi_k2") else "string")
    assert form.none_content == (name in ("deepseek_r1", "kimi_k2"))
    assert form.text_arguments == (name == "deepseek_r1")


@pytest.mark.parametrize("name", SOURCES)
def test_continuing_equals_transformers(name):
    messages = [USER, {"role": "assistant", "content": "Once upon a"}]
    expected = theirs(SOURCES[name], messages, continue_final_message=True)
    assert ChatTemplate(SOURCES[name], SPECIAL).render(messages, continue_final_message=True) == expected


def test_documents():
    documents = [{"title": "Bees", "text": "They buzz."}]
    expected = theirs(SOURCES["command_r"], [USER], documents=documents, add_generation_prompt=True)
    assert ChatTemplate(SOURCES["command_r"], SPECIAL).render([USER], documents=documents) == expected
    assert "title: Bees" in expected
