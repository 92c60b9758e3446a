"""POST /v1/responses: the openai SDK over a live server, events, what becomes of the input, and what is refused."""

from __future__ import annotations

import json

import openai
import pytest

from raysgl.api.responses_api.protocol import ResponsesRequest
from raysgl.api.responses_api.to_chat import encrypt, to_chat
from raysgl.messages import Finish

from ..fake_backend import Script

TEXT = "Hello 👩‍👩‍👧 world"


def events(body: str) -> list[dict]:
    out = []
    for block in body.removesuffix("\n\n").split("\n\n"):
        name, data = block.split("\n")
        out.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {out[-1]['type']}"
    assert [event["sequence_number"] for event in out] == list(range(len(out)))
    return out


async def post(server, body: dict):
    async with server.client() as client:
        return await client.post("/v1/responses", json=body)


@pytest.fixture
def client(server):
    with server().live() as port, openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="x", max_retries=0) as client:
        yield client


def test_sdk_whole_and_stream(client):
    answer = client.responses.create(model="tiny", input="hi", instructions="Be brief", max_output_tokens=60)
    assert answer.output_text == TEXT
    assert (answer.status, answer.store, answer.instructions) == ("completed", False, "Be brief")
    assert answer.usage.total_tokens == answer.usage.input_tokens + answer.usage.output_tokens
    with client.responses.stream(model="tiny", input="hi") as stream:
        text = "".join(event.delta for event in stream if event.type == "response.output_text.delta")
        final = stream.get_final_response()
    assert text == final.output_text == TEXT
    assert final.output[0].content[0].text == TEXT


def test_settings_that_load_generators_send():
    request = ResponsesRequest.model_validate({"input": "hi", "stop": ["x"], "ignore_eos": True, "max_output_tokens": 3})
    chat = to_chat(request)
    assert (chat["stop"], chat["ignore_eos"], chat["max_completion_tokens"]) == (["x"], True, 3)


def test_sdk_logprobs(client):
    answer = client.responses.create(model="tiny", input="hi", include=["message.output_text.logprobs"], top_logprobs=2)
    logprobs = answer.output[0].content[0].logprobs
    assert b"".join(bytes(token.bytes) for token in logprobs).decode() == TEXT
    assert {len(token.top_logprobs) for token in logprobs} == {2}


async def test_the_events_of_a_text(server):
    got = events((await post(server(), {"input": "hi", "stream": True})).text)
    kinds = [event["type"].removeprefix("response.") for event in got]
    assert kinds[:4] == ["created", "in_progress", "output_item.added", "content_part.added"]
    assert kinds[-4:] == ["output_text.done", "content_part.done", "output_item.done", "completed"]
    assert set(kinds[4:-4]) == {"output_text.delta"}
    assert "".join(event["delta"] for event in got if "delta" in event) == TEXT
    assert got[-4]["text"] == got[-3]["part"]["text"] == got[-2]["item"]["content"][0]["text"] == TEXT
    assert len({event.get("item_id") or event["item"]["id"] for event in got[2:-1]}) == 1
    whole = (await post(server(), {"input": "hi"})).json()
    streamed = got[-1]["response"]
    assert [item["content"] for item in whole["output"]] == [item["content"] for item in streamed["output"]]
    assert set(whole) == set(streamed)


async def test_cut_off_empty_and_aborted(server, tokenizer):
    cut = (await post(server(), {"input": "hi", "max_output_tokens": 2})).json()
    assert (cut["status"], cut["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})
    assert cut["output"][0]["status"] == "incomplete"
    nothing = (await post(server(Script([[2]], Finish("stop", 2))), {"input": "hi"})).json()
    assert nothing["output"][0]["content"][0]["text"] == ""
    aborted = await post(server(Script([tokenizer.encode("a"), []], Finish("abort"))), {"input": "hi", "stream": True})
    assert events(aborted.text)[-1]["type"] == "response.failed"


async def test_a_failure_in_a_stream(server, tokenizer):
    script = Script([tokenizer.encode("a"), []], Finish("error", message="gone", status=503))
    last = events((await post(server(script), {"input": "hi", "stream": True})).text)[-1]
    assert last["type"] == "response.failed"
    assert last["response"]["error"]["message"] == "gone"


def test_items_become_messages():
    items = [
        {"role": "developer", "content": "d"},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "a"}, {"type": "input_text", "text": "b"}]},
        {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "hm"}]},
        {"type": "message", "role": "assistant", "id": "m", "status": "completed", "content": [{"type": "output_text", "text": "c", "annotations": []}]},
        {"type": "function_call", "call_id": "1", "name": "f", "arguments": "{}"},
        {"type": "function_call", "call_id": "2", "name": "g", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "1", "output": "x"},
        {"type": "function_call_output", "call_id": "2", "output": [{"type": "input_text", "text": "y"}]},
        {"type": "reasoning", "summary": [], "encrypted_content": encrypt("ah 🙂")},
        {"role": "assistant", "content": "e"},
        {"role": "assistant", "content": "f"},
    ]  # fmt: skip
    chat = to_chat(ResponsesRequest(input=items, instructions="i"))
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    assert chat["messages"] == [
        {"role": "system", "content": "i"},
        {"role": "developer", "content": "d"},
        {"role": "user", "content": "a\nb"},
        {
            "role": "assistant",
            "content": "c",
            "reasoning_content": "hm",
            "tool_calls": [call, {**call, "id": "2", "function": {"name": "g", "arguments": "{}"}}],
        },
        {"role": "tool", "tool_call_id": "1", "content": "x"},
        {"role": "tool", "tool_call_id": "2", "content": "y"},
        {"role": "assistant", "content": "e", "reasoning_content": "ah 🙂"},
        {"role": "assistant", "content": "f"},
    ]


def test_tools_and_formats_become_a_chats():
    tools = [{"type": "function", "name": name, "parameters": {"type": "object"}, "strict": True} for name in "fg"]
    request = ResponsesRequest(
        input="hi",
        tools=tools,
        tool_choice={"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "g"}]},
        text={"format": {"type": "json_schema", "name": "x", "schema": {"type": "object"}, "strict": True}},
        reasoning={"effort": "low"},
        max_output_tokens=5,
    )
    assert to_chat(request) == {
        "messages": [{"role": "user", "content": "hi"}],
        "max_completion_tokens": 5,
        "reasoning_effort": "low",
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "x", "schema": {"type": "object"}, "strict": True},
        },
        "tools": [{"type": "function", "function": {"name": "g", "parameters": {"type": "object"}, "strict": True}}],
        "tool_choice": "required",
    }
    named = to_chat(ResponsesRequest(input="hi", tools=tools, tool_choice={"type": "function", "name": "f"}))
    assert named["tool_choice"] == {"type": "function", "function": {"name": "f"}}


@pytest.mark.parametrize(
    ("extra", "param"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"conversation": "c"}, "conversation"),
        ({"background": True}, "background"),
        ({"truncation": "auto"}, "truncation"),
        ({"tools": [{"type": "web_search"}]}, "tools.0.type"),
        ({"tools": [{"type": "function"}]}, "tools.0.name"),
        ({"tool_choice": {"type": "mcp"}}, "tool_choice"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"text": {"format": {"type": "json_schema", "name": "x"}}}, "text.format.schema"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input.0"),
        ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]}, "input.0.content.0"),
        ({"input": [{"role": "user", "content": [{"type": "input_text"}]}]}, "input.0.content.0.text"),
        ({"input": [{"type": "reasoning", "encrypted_content": "?"}]}, "input.0.encrypted_content"),
        ({"input": []}, "input"),
        ({"input": "x" * 5000}, "input"),
        ({"max_output_tokens": 5000}, "max_output_tokens"),
        ({"reasoning": {"effort": "low"}}, "reasoning.effort"),
        ({"temperature": -1}, "temperature"),
        ({"model": "gpt"}, "model"),
        ({"unknown": 1}, "unknown"),
    ],
)
async def test_what_is_refused(server, extra, param):
    answer = await post(server(), {"input": "hi"} | extra)
    assert answer.status_code in (400, 404)
    assert answer.json()["error"]["param"] == param
