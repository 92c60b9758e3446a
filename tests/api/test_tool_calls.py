"""Tools and reasoning in chat: golden bodies, whole equals streamed, what is refused, and a round trip through real templates."""

from __future__ import annotations

import json
from typing import get_args

import openai
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from raysgl.api.chat_template import ChatTemplate
from raysgl.api.parsers.reasoning import REASONING_FORMATS
from raysgl.api.parsers.registry import TOOL_FORMATS
from raysgl.config import ReasoningParser, ToolCallParser
from raysgl.messages import Finish

from .test_shapes import events
from .test_template_parity import SOURCES
from .tooled import ASK, CALL, INSIDE, SAID, TOOLS, post, prompt_of, refused


def test_the_config_names_every_format():
    assert set(get_args(ToolCallParser)) == {"auto", "none", *TOOL_FORMATS}
    assert set(get_args(ReasoningParser)) == {"auto", "none", *REASONING_FORMATS}


# ---------------------------------------------------------------- chat


async def test_a_whole_answer(saying):
    (choice,) = (await post(saying(), ASK)).json()["choices"]
    calls = choice["message"].pop("tool_calls")
    assert choice == {
        "index": 0,
        "message": {"role": "assistant", "content": "Let me see.", "reasoning_content": "Hm é"},
        "logprobs": None,
        "finish_reason": "tool_calls",
        "matched_stop": 2,
    }
    assert [call.pop("id")[:5] for call in calls] == ["call_", "call_"]
    assert calls == [
        {"index": 0, "type": "function", "function": {"name": "weather", "arguments": '{"city": "Zürich 👩‍👩‍👧"}'}},
        {"index": 1, "type": "function", "function": {"name": "now", "arguments": "{}"}},
    ]


async def test_a_stream(saying):
    got = events((await post(saying(cuts=[3, 30]), ASK | {"stream": True})).text)
    choices = [chunk["choices"][0] for chunk in got]
    assert {tuple(choice) for choice in choices} == {("index", "delta", "logprobs", "finish_reason", "matched_stop")}
    assert all(list(choice["delta"])[:3] == ["role", "content", "reasoning_content"] for choice in choices)
    assert choices[0]["delta"] == {"role": "assistant", "content": "", "reasoning_content": None}
    assert (choices[-1]["delta"], choices[-1]["finish_reason"], choices[-1]["matched_stop"]) == (
        {"role": None, "content": None, "reasoning_content": None},
        "tool_calls",
        2,
    )
    deltas = [call for choice in choices for call in choice["delta"].get("tool_calls", ())]
    ids = [delta.pop("id") for delta in deltas if "id" in delta]
    assert len(set(ids)) == 2
    first, second = (
        {"index": i, "type": "function", "function": {"name": name, "arguments": ""}}
        for i, name in enumerate(("weather", "now"))
    )
    at = deltas.index(second)
    assert deltas[0] == first
    assert deltas[at + 1 :] == [{"index": 1, "function": {"arguments": "{}"}}]
    assert all(list(delta) == ["index", "function"] and list(delta["function"]) == ["arguments"] for delta in deltas[1:at])


def put_together(chunks: list[dict]) -> dict:
    """A stream's choice as the whole answer has it, ids left out."""
    message: dict = {"content": "", "reasoning_content": "", "tool_calls": []}
    entries, finish = [], None
    *chunks, last = chunks
    for chunk in chunks:
        (choice,) = chunk["choices"]
        delta, finish = choice["delta"], choice["finish_reason"]
        entries += (choice["logprobs"] or {"content": []})["content"]
        message["content"] += delta["content"] or ""
        message["reasoning_content"] += delta["reasoning_content"] or ""
        for call in delta.get("tool_calls", ()):
            if "id" in call:
                message["tool_calls"].append([call["function"]["name"], ""])
            message["tool_calls"][call["index"]][1] += call["function"]["arguments"]
    return message | {"logprobs": entries, "finish_reason": finish, "usage": last["usage"]}


def taken_apart(body: dict) -> dict:
    (choice,) = body["choices"]
    message = choice["message"]
    calls = [[call["function"]["name"], call["function"]["arguments"]] for call in message.get("tool_calls", ())]
    return {
        "content": message["content"] or "",
        "reasoning_content": message["reasoning_content"] or "",
        "tool_calls": calls,
        "logprobs": choice["logprobs"]["content"],
        "finish_reason": choice["finish_reason"],
        "usage": body["usage"],
    }


TEXTS = [SAID, "<think>x</think>y", CALL, "no <tool_call>", "<think>never ends é", SAID[:90], SAID[:120], "plain 🙂 <th"]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=25)
@given(text=st.sampled_from(TEXTS), cuts=st.lists(st.integers(1, 90), max_size=6), stop=st.booleans())
async def test_whole_equals_streamed_and_every_token_has_its_logprob(saying, text, cuts, stop):
    body = ASK | {"logprobs": True} | ({"stop": ["👧", "never"]} if stop else {})
    whole = taken_apart((await post(saying(text), body)).json())
    made = saying(text, cuts)
    stream = {"stream": True, "stream_options": {"include_usage": True}}
    assert put_together(events((await post(made, body | stream)).text)) == whole
    if not stop:
        assert [entry["token"] for entry in whole["logprobs"]] == [
            made.backend.models["tiny"].tokenizer.token_text(token)
            for token in made.backend.models["tiny"].tokenizer.encode(text, add_special_tokens=False)
        ]


async def test_a_call_that_is_cut_off_is_an_answer_that_is(saying, thinking):
    thinking.tool_call_parser = "qwen3_coder"
    text = "<tool_call>\n<function=weather>\n<parameter=city>\nZürich"
    (choice,) = (await post(saying(text, finish=Finish("length")), ASK)).json()["choices"]
    assert json.loads(choice["message"]["tool_calls"][0]["function"]["arguments"]) == {"city": "Zürich"}
    assert choice["finish_reason"] == "length"
    thought = await post(saying("<think>on and on", finish=Finish("length")), ASK)
    assert thought.json()["choices"][0]["message"] == {"role": "assistant", "content": None, "reasoning_content": "on and on"}


@pytest.mark.parametrize(
    ("text", "thought"),
    [(SAID, "\nHm é\n</think>"), ("<think>on and on é", "on and on é"), (CALL, ""), ("x</think><think>y</think>", "")],
)
async def test_tokens_of_reasoning_are_counted(saying, thinking, text, thought):
    """From behind the mark that begins it, with the one that ends it."""
    usage = (await post(saying(text), ASK | {"n": 2, "return_meta_info": True})).json()
    count = len(thinking.tokenizer.encode(thought, add_special_tokens=False))
    assert usage["usage"]["reasoning_tokens"] == 2 * count
    assert usage["usage"]["completion_tokens_details"] == ({"reasoning_tokens": 2 * count} if count else None)
    assert [choice["meta_info"]["reasoning_tokens"] for choice in usage["choices"]] == [count, count]


@pytest.mark.parametrize("stream", [False, True])
async def test_a_single_call_ends_the_answer(saying, stream):
    """The model would call on for ever."""
    server = saying()
    server.backend.script(None, None, 0).hang = True
    body = ASK | {
        "parallel_tool_calls": False,
        "n": 2,
        "stream": stream,
        "stream_options": {"include_usage": True} if stream else None,
    }
    text = (await post(server, body)).text
    if stream:
        chunks = events(text)
        ends = [c["finish_reason"] for chunk in chunks for c in chunk["choices"] if c["finish_reason"]]
        calls = [call for chunk in chunks for c in chunk["choices"] for call in c["delta"].get("tool_calls") or ()]
        count = chunks[-1]["usage"]["completion_tokens"]
        assert {call["index"] for call in calls} == {0}
    else:
        choices = json.loads(text)["choices"]
        ends, count = [choice["finish_reason"] for choice in choices], json.loads(text)["usage"]["completion_tokens"]
        assert [[call["function"]["name"] for call in c["message"]["tool_calls"]] for c in choices] == [["weather"]] * 2
        assert [choice["message"]["content"] for choice in choices] == ["Let me see."] * 2
    assert ends == ["tool_calls"] * 2
    assert server.backend.last.aborted == {0, 1}, "the engines need not go on"
    tokens = server.backend.models["tiny"].tokenizer.encode(SAID[: SAID.index(CALL) + len(CALL)], add_special_tokens=False)
    assert len(tokens) * 2 - 40 < count <= len(tokens) * 2


async def test_settings_of_what_is_read(saying):
    async def message(**fields):
        return (await post(saying(), ASK | fields)).json()["choices"][0]["message"]

    assert len((await message(parallel_tool_calls=False))["tool_calls"]) == 1
    kept = await message(separate_reasoning=False)
    assert kept["content"] == "<think>\nHm é\n</think>\n\nLet me see."
    assert len(kept["tool_calls"]) == 2
    without = await message(tool_choice="none")
    assert (without["content"].startswith("Let me see."), "tool_calls" in without, without["reasoning_content"]) == (
        True,
        False,
        "Hm é",
    )
    deltas = [
        chunk["choices"][0]["delta"]
        for chunk in events((await post(saying(), ASK | {"stream": True, "stream_reasoning": False})).text)
    ]
    assert [delta["reasoning_content"] for delta in deltas if delta["reasoning_content"]] == ["Hm é"]


async def test_several_choices(saying):
    body = (await post(saying(), ASK | {"n": 3})).json()
    assert [len(choice["message"]["tool_calls"]) for choice in body["choices"]] == [2, 2, 2]
    assert len({call["id"] for choice in body["choices"] for call in choice["message"]["tool_calls"]}) == 6


# ---------------------------------------------------------------- the prompt


async def test_the_template_gets_the_requests_own_tools(saying):
    made = saying()
    own = {"type": "function", "function": {"name": "f", "parameters": {"$comment": "ours"}, "x-own": 1}}
    await post(made, ASK | {"tools": [own]})
    assert json.dumps(own) in prompt_of(made)
    await post(made, ASK | {"tools": [own], "tool_choice": "none"})
    assert "x-own" not in prompt_of(made)


async def test_tokenize_knows_tools(saying):
    made = saying()
    await post(made, ASK)
    asked = {name: ASK[name] for name in ("messages", "tools")}
    assert (await post(made, asked, "/tokenize")).json()["tokens"] == made.backend.last.input_ids


@pytest.mark.parametrize("name", ["hermes", "qwen25", "qwen3", "glm45", "kimi_k2", "llama3", "gpt_oss"])
async def test_an_answer_goes_back_in_as_it_came_out(saying, thinking, name):
    """Call, result, answer: the second turn's prompt has the call, its arguments and the result."""
    thinking.chat_template = ChatTemplate(SOURCES[name], {"bos_token": "", "eos_token": ""})
    made = saying(f"<think>hm</think>{CALL}")
    message = (await post(made, ASK)).json()["choices"][0]["message"]
    result = {"role": "tool", "tool_call_id": message["tool_calls"][0]["id"], "content": "21 degrees"}
    await post(made, ASK | {"messages": [*ASK["messages"], message, result]})
    prompt = prompt_of(made)
    assert '"city"' in prompt or "<arg_key>city" in prompt
    assert "Zürich 👩‍👩‍👧" in prompt
    assert "21 degrees" in prompt


@pytest.mark.parametrize(
    ("effort", "end"),
    [("none", "<think>\n\n</think>\n\n"), ("low", "<|im_start|>assistant\n"), (None, "<|im_start|>assistant\n")],
)
async def test_reasoning_effort_is_the_templates_switch(saying, effort, end):
    made = saying()
    await post(made, ASK | {"reasoning_effort": effort})
    assert prompt_of(made).endswith(end)
    await post(made, ASK | {"reasoning_effort": effort, "chat_template_kwargs": {"enable_thinking": True}})
    assert prompt_of(made).endswith("<|im_start|>assistant\n")


@pytest.mark.parametrize("parser", ["qwen3", "deepseek-r1"])
async def test_the_prompt_says_whether_the_model_is_thinking(saying, thinking, parser):
    thinking.chat_template, thinking.reasoning_parser = ChatTemplate(INSIDE), parser
    ask = {"messages": ASK["messages"]}
    inside = (await post(made := saying("Hm</think>So"), ask)).json()["choices"][0]["message"]
    assert (inside["content"], inside["reasoning_content"]) == ("So", "Hm")
    off = ask | {"chat_template_kwargs": {"enable_thinking": False}}
    outside = (await post(saying("So"), off)).json()["choices"][0]["message"]
    assert (outside["content"], outside["reasoning_content"]) == ("So", None)
    await post(saying(), ask)
    ids = made.backend.last.input_ids
    again = (await post(saying("Hm</think>So"), {"input_ids": ids})).json()["choices"][0]["message"]
    assert again == inside
    prefix = ask["messages"] + [{"role": "assistant", "content": "<think>Well", "prefix": True}]
    assert (await post(saying("Hm</think>So"), {"messages": prefix})).json()["choices"][0]["message"] == inside
    prefix[-1]["content"] = "The answer"
    assert (await post(saying(" is"), {"messages": prefix})).json()["choices"][0]["message"]["content"] == " is"


# ---------------------------------------------------------------- refused


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        (
            {"tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "objekt"}}}]},
            "tools.0.function.parameters",
        ),
        ({"tools": [*TOOLS, TOOLS[0]]}, "tools"),
        ({"tool_choice": {"type": "function", "function": {"name": "g"}}}, "tool_choice"),
        ({"tool_choice": {"type": "function"}}, "tool_choice.function"),
        ({"tool_choice": "any"}, "tool_choice"),
        ({"tools": [], "tool_choice": "required"}, "tool_choice"),
        (
            {"tool_choice": {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": []}}},
            "tool_choice.allowed_tools.tools",
        ),
        (
            {"messages": [{"role": "assistant", "tool_calls": [{"id": "1", "function": {}}]}]},
            "messages.0.tool_calls.0.function.name",
        ),
    ],
)
async def test_what_is_refused(saying, fields, param):
    assert (await refused(saying(), ASK | fields))["param"] == param


async def test_a_model_without_parser_or_without_tools_in_its_template(saying, thinking):
    thinking.tool_call_parser = None
    error = await refused(saying(), ASK)
    assert (error["param"], "tool_call_parser" in error["message"]) == ("tools", True)
    assert (await post(saying("x"), ASK | {"tool_choice": "none"})).json()["choices"][0]["message"]["content"] == "x"
    thinking.tool_call_parser, thinking.chat_template = "hermes", ChatTemplate(INSIDE)
    assert "chat template has no tools" in (await refused(saying(), ASK))["message"]


# ---------------------------------------------------------------- the openai package


def test_sdk_streams_tool_calls(tool_client):
    with tool_client.chat.completions.stream(model="tiny", messages=ASK["messages"], tools=TOOLS) as stream:
        done = [event for event in stream if event.type == "tool_calls.function.arguments.done"]
        message = stream.get_final_completion().choices[0].message
    assert [(event.name, event.arguments) for event in done] == [("weather", '{"city": "Zürich 👩‍👩‍👧"}'), ("now", "{}")]
    assert [call.function.name for call in message.tool_calls] == ["weather", "now"]
    assert message.content == "Let me see."
    assert message.model_extra["reasoning_content"] == "Hm é"


class weather(BaseModel):
    city: str


def test_sdk_parses_arguments(tool_client):
    tool = openai.pydantic_function_tool(weather)
    answer = tool_client.chat.completions.parse(
        model="tiny", messages=ASK["messages"], tools=[tool, openai.pydantic_function_tool(Now, name="now")]
    )
    call, _ = answer.choices[0].message.tool_calls
    assert call.function.parsed_arguments == weather(city="Zürich 👩‍👩‍👧")


class Now(BaseModel):
    pass
