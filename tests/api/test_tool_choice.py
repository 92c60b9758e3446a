"""What an answer with tools is held to, and that it is read as what it was held to. (What the grammars let through is tested beside
them.)"""

from __future__ import annotations

import json

import pytest

from raysgl.api.chat_template import ChatTemplate
from raysgl.api.parsers.registry import tool_format
from raysgl.messages import Finish

from .conftest import TEMPLATES, with_marks
from .fake_backend import Script
from .tooled import ASK, CALL, CITY, INSIDE, TOOLS, post, refused

NAMED = {"type": "function", "function": {"name": "now"}}
STRICT = [{"type": "function", "function": TOOLS[0]["function"] | {"strict": True}}, TOOLS[1]]
FORMAT = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object", "properties": {"x": {"const": 1}}}}}


async def constraint(server, **fields) -> dict | None:
    """The grammar's rules as one text, and its schemas."""
    await post(server, ASK | fields)
    found = server.backend.last.sampling.constraint
    return None if found is None else json.loads(found.text)


async def test_what_an_answer_is_held_to(saying):
    made = saying()
    assert await constraint(made) is None
    assert await constraint(made, tool_choice="none", tools=STRICT) is None
    required = await constraint(made, tool_choice="required")
    assert ("weather" in required["rules"], "now" in required["rules"], ")*" in required["rules"]) == (True, True, True)
    once = await constraint(made, tool_choice="required", parallel_tool_calls=False)
    assert ")*" not in once["rules"]
    named = await constraint(made, tool_choice=NAMED)
    assert ("weather" in named["rules"], "now" in named["rules"], ")*" in named["rules"]) == (False, True, False)
    strict = await constraint(made, tools=STRICT)
    assert list(strict["schemas"].values()) == [CITY | {"additionalProperties": False}, {"type": "object"}]
    chosen = {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [NAMED]}}
    allowed = await constraint(made, tool_choice=chosen)
    assert ("weather" in allowed["rules"], ")*" in allowed["rules"]) == (False, True)


def many(count: int, parameters: int) -> list[dict]:
    schema = {"type": "object", "properties": {f"p{i}": {"type": "string"} for i in range(parameters)}}
    return [{"type": "function", "function": {"name": f"f{i}", "parameters": schema}} for i in range(count)]


@pytest.mark.parametrize(
    ("parser", "tools"), [("hermes", many(60, 60)), ("qwen3_coder", many(9, 200)), ("pythonic", many(1, 200))]
)
async def test_no_more_is_held_to_than_can_be(saying, thinking, parser, tools):
    thinking.tool_call_parser = parser
    thinking.context_length = 1_000_000
    error = await refused(saying(), ASK | {"tools": tools, "tool_choice": "required"})
    assert error["param"] == "tools"


async def test_an_answer_in_a_format_or_calls(saying):
    """What agents ask for: tools, and then an answer of a schema."""
    found = await constraint(saying(), response_format=FORMAT)
    assert FORMAT["json_schema"]["schema"] in found["schemas"].values()
    assert "<tool_call>" in found["rules"] or "<[" in found["rules"]
    error = await refused(saying(), ASK | {"response_format": FORMAT, "tool_choice": "required"})
    assert error["param"] == "response_format"
    assert (await refused(saying(), ASK | {"regex": "a+"}))["param"] == "regex"
    assert await constraint(saying(), response_format=FORMAT, tool_choice="none") == FORMAT["json_schema"]["schema"]


async def test_without_a_parser_calls_are_json(saying, thinking):
    thinking.tool_call_parser = None
    text = '[{"name": "weather", "parameters": {"city": "Rome"}}, {"name": "now", "parameters": {}}]'
    (choice,) = (await post(saying(text), ASK | {"tool_choice": "required"})).json()["choices"]
    calls = [(call["function"]["name"], json.loads(call["function"]["arguments"])) for call in choice["message"]["tool_calls"]]
    assert (calls, choice["finish_reason"]) == ([("weather", {"city": "Rome"}), ("now", {})], "tool_calls")
    assert "tool_call_parser" in (await refused(saying(), ASK | {"response_format": FORMAT}))["message"]
    thinking.chat_template = ChatTemplate(INSIDE)  # does not show tools; the constraint names them
    assert (await post(saying(f"Hm</think>{text}"), ASK | {"tool_choice": "required"})).json()["choices"][0]["message"][
        "tool_calls"
    ]


async def test_what_the_engine_says_of_a_grammar_names_the_tools(thinking, server):
    refusal = Finish("error", message="uniqueItems is not supported", status=400, param="constraint")
    error = await refused(server(Script([[]], refusal)), ASK | {"tools": STRICT})
    assert (error["param"], "uniqueItems" in error["message"]) == ("tools", True)


@pytest.mark.parametrize("wish", [{"tools": None, "response_format": {"type": "json_object"}}, {"tool_choice": "required"}])
async def test_a_constraint_begins_after_the_thinking(saying, thinking, wish):
    made = saying(CALL)
    begin, end = (thinking.tokenizer._backend.token_to_id(mark) for mark in ("<think>", "</think>"))

    async def thoughts(body):
        await post(made, body)
        return made.backend.last.sampling.think_begin_id, made.backend.last.sampling.think_end_ids

    assert await thoughts(ASK | wish) == (begin, (end,))  # it may think, or not
    thinking.chat_template = ChatTemplate(INSIDE)
    assert await thoughts(ASK | wish) == (None, (end,))
    assert await thoughts(ASK | wish | {"chat_template_kwargs": {"enable_thinking": False}}) == (None, ())
    assert await thoughts({"messages": ASK["messages"]}) == (None, ())


async def test_a_bound_on_thinking(saying, thinking):
    made = saying(CALL)
    begin, end = (thinking.tokenizer._backend.token_to_id(mark) for mark in ("<think>", "</think>"))
    ask = {"messages": ASK["messages"], "max_thinking_tokens": 7}

    async def bound(body=ask, path="/v1/chat/completions"):
        await post(made, body, path)
        sampling = made.backend.last.sampling
        return sampling.max_thinking_tokens, sampling.think_begin_id, sampling.think_end_ids

    assert await bound() == (7, begin, (end,))
    assert await bound(ask | {"response_format": FORMAT, "max_thinking_tokens": 0}) == (0, begin, (end,))
    message = {"model": "tiny", "max_tokens": 99, "messages": [{"role": "user", "content": "hi"}]}
    on = {"thinking": {"type": "enabled", "budget_tokens": 9}}
    assert await bound(message | on, "/v1/messages") == (9, begin, (end,))
    assert (await bound(message, "/v1/messages"))[0] is None
    thinking.chat_template = ChatTemplate(INSIDE)
    assert await bound() == (7, None, (end,))
    assert await bound(ask | {"chat_template_kwargs": {"enable_thinking": False}}) == (7, None, ())  # it does not think
    assert (await refused(made, ask | {"allowed_token_ids": [5]}))["param"] == "allowed_token_ids"
    assert (await refused(made, ask | {"max_thinking_tokens": -1}))["param"] == "max_thinking_tokens"
    assert (await refused(made, {"prompt": "x", "max_thinking_tokens": 7}, "/v1/completions"))["param"] == "max_thinking_tokens"
    thinking.chat_template = ChatTemplate("{{ messages[-1].content }}")
    for parser, reason in (("kimi", "one token"), ("gpt-oss", "not supported"), (None, "reasoning_parser")):
        thinking.reasoning_parser = parser
        error = await refused(made, ask)
        assert error["param"] == "max_thinking_tokens" and reason in error["message"]
        assert (await bound(message | on, "/v1/messages"))[0] is None, "there it is an aim"


async def test_an_answer_in_channels(saying, thinking, tokenizer_folders):
    """gpt-oss: reasoning, calls and answers have marks; a schema for the answer begins behind its own."""
    marks = tool_format("gpt-oss").tags
    thinking.tokenizer = with_marks(tokenizer_folders["bytes"], marks, special=True)
    thinking.vocab_size = thinking.tokenizer.vocab_size
    thinking.chat_template = ChatTemplate((TEMPLATES / "gpt_oss.jinja").read_text())
    thinking.tool_call_parser = thinking.reasoning_parser = "gpt-oss"
    call = '<|start|>assistant<|channel|>commentary to=functions.weather <|constrain|>json<|message|>{"city": "Rom"}'
    made = saying(f"<|channel|>analysis<|message|>Hm é<|end|>{call}")
    message = (await post(made, ASK | {"response_format": FORMAT})).json()["choices"][0]["message"]
    assert (message["content"], message["reasoning_content"]) == (None, "Hm é")
    assert message["tool_calls"][0]["function"] == {"name": "weather", "arguments": '{"city": "Rom"}'}
    sampling = made.backend.last.sampling
    assert sampling.constraint.kind == "json_schema"
    assert thinking.tokenizer.decode(list(sampling.think_end_ids), False) == "<|channel|>final<|message|>"
    await post(made, ASK | {"tool_choice": "required"})
    assert (made.backend.last.sampling.constraint.kind, made.backend.last.sampling.think_end_ids) == ("lark", ())
    assert (await refused(made, ASK | {"response_format": FORMAT, "tools": STRICT}))["param"] == "response_format"
