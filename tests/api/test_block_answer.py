"""Reasoning and tool calls as blocks, in both APIs that have them: the events of a stream add up to the whole answer."""

from __future__ import annotations

import json

import pytest

from raysgl.api.block_answer import BlockAnswer
from raysgl.api.parsers.events import ReasoningDelta, TextDelta, ToolCallArguments, ToolCallStart
from raysgl.messages import Finish

from .fake_backend import Script

SAID = [
    [ReasoningDelta("Let "), ReasoningDelta("me see")],
    [TextDelta("I look "), TextDelta("it up.")],
    [ToolCallStart(0, "call_1", "get_weather"), ToolCallArguments(0, '{"city":')],
    [ToolCallArguments(0, '"Zürich"}'), ToolCallStart(1, "call_2", "now")],
]
MESSAGES = {"model": "tiny", "max_tokens": 9, "messages": [{"role": "user", "content": "hi"}]}


@pytest.fixture
def ask(server, monkeypatch):
    """ask(path, body): the answer to one piece a step, each of which stands for the next of SAID."""
    left: list = []

    def events(self, piece):
        return left.pop(0) if piece.finish_reason is None else []

    monkeypatch.setattr(BlockAnswer, "events", events)

    async def post(path: str, body: dict):
        left[:] = SAID
        script = Script([*([[65 + i] for i in range(len(SAID))]), [2]], Finish("tool_calls", None), delay=0.002)
        async with server(script).client() as client:
            return await client.post(path, json=body)

    return post


def data(body: str) -> list[dict]:
    return [json.loads(block.split("\ndata: ")[1]) for block in body.removesuffix("\n\n").split("\n\n")]


async def test_messages(ask):
    whole = (await ask("/v1/messages", MESSAGES)).json()
    thinking, text, *calls = whole["content"]
    assert (thinking["type"], thinking["thinking"], text) == (
        "thinking",
        "Let me see",
        {"type": "text", "text": "I look it up."},
    )
    assert thinking["signature"]
    assert calls == [
        {"type": "tool_use", "id": "call_1", "name": "get_weather", "input": {"city": "Zürich"}},
        {"type": "tool_use", "id": "call_2", "name": "now", "input": {}},
    ]
    assert whole["stop_reason"] == "tool_use"
    events = data((await ask("/v1/messages", MESSAGES | {"stream": True})).text)
    assert [event["content_block"]["type"] for event in events if event["type"] == "content_block_start"] == [
        *("thinking", "text", "tool_use", "tool_use")
    ]
    kinds = [(event["index"], event["delta"]["type"]) for event in events if event["type"] == "content_block_delta"]
    assert kinds == [
        *[(0, "thinking_delta")] * 2,
        (0, "signature_delta"),
        *[(1, "text_delta")] * 2,
        *[(2, "input_json_delta")] * 2,
    ]
    opened = [event["index"] for event in events if event["type"] == "content_block_start"]
    closed = [event["index"] for event in events if event["type"] == "content_block_stop"]
    assert opened == closed == [0, 1, 2, 3]
    partial = "".join(event["delta"].get("partial_json", "") for event in events if event["type"] == "content_block_delta")
    assert json.loads(partial) == {"city": "Zürich"}
    assert events[-2]["delta"]["stop_reason"] == "tool_use"


async def test_responses(ask):
    body = {"input": "hi", "include": ["reasoning.encrypted_content"]}
    whole = (await ask("/v1/responses", body)).json()
    reasoning, message, *calls = whole["output"]
    assert reasoning["content"] == [{"type": "reasoning_text", "text": "Let me see"}]
    assert reasoning["encrypted_content"]
    assert message["content"][0]["text"] == "I look it up."
    assert [(call["call_id"], call["name"], call["arguments"]) for call in calls] == [
        ("call_1", "get_weather", '{"city":"Zürich"}'),
        ("call_2", "now", ""),
    ]
    assert {item["status"] for item in whole["output"]} == {"completed"}
    events = data((await ask("/v1/responses", body | {"stream": True})).text)
    done = [event for event in events if event["type"] == "response.function_call_arguments.done"]
    assert [event["arguments"] for event in done] == ['{"city":"Zürich"}', ""]
    deltas = [event["delta"] for event in events if event["type"] == "response.function_call_arguments.delta"]
    assert "".join(deltas) == done[0]["arguments"]
    thoughts = [event for event in events if event["type"].startswith("response.reasoning_text")]
    assert [event["type"].rsplit(".")[-1] for event in thoughts] == ["delta", "delta", "done"]
    items = [event["item"] for event in events if event["type"] == "response.output_item.done"]
    assert [item["type"] for item in items] == ["reasoning", "message", "function_call", "function_call"]
    assert len(items) == len(events[-1]["response"]["output"])


async def test_what_is_answered_is_understood_when_it_comes_back(ask):
    output = (await ask("/v1/responses", {"input": "hi", "include": ["reasoning.encrypted_content"]})).json()["output"]
    assert (await ask("/v1/responses", {"input": [*output, {"role": "user", "content": "more"}]})).status_code == 200
    content = (await ask("/v1/messages", MESSAGES)).json()["content"]
    history = [*MESSAGES["messages"], {"role": "assistant", "content": content}, {"role": "user", "content": "more"}]
    assert (await ask("/v1/messages", MESSAGES | {"messages": history})).status_code == 200
