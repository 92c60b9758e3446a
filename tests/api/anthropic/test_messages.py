"""POST /v1/messages: the exact events, what becomes of the request, stop reasons, Anthropic's shape of errors."""

from __future__ import annotations

import json

import pytest

from raysgl.api.anthropic.protocol import MessagesRequest
from raysgl.api.anthropic.to_chat import to_chat
from raysgl.api.backend import QueueFull
from raysgl.api.chat_template import ChatTemplate
from raysgl.messages import Finish

from ..conftest import CHATML
from ..fake_backend import Script

TEXT = "Hello 👩‍👩‍👧 world"
BODY = {"model": "tiny", "max_tokens": 60, "messages": [{"role": "user", "content": "hi"}]}
USE = {"type": "tool_use", "id": "toolu_1", "name": "f", "input": {"a": "é"}}


def events(body: str) -> list[dict]:
    out = []
    for block in body.removesuffix("\n\n").split("\n\n"):
        name, data = block.split("\n")
        out.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {out[-1]['type']}"
    return out


async def post(server, body: dict, path: str = "/v1/messages"):
    async with server.client() as client:
        return await client.post(path, json=body)


async def test_whole(server, tokenizer):
    made = server(Script([[token] for token in tokenizer.encode("Hello")], Finish("stop", 2), cached_tokens=4))
    answer = await post(made, BODY)
    prompt = len(made.backend.last.input_ids)
    assert answer.json() == {
        "id": f"msg_{made.backend.last.request_id}",
        "type": "message",
        "role": "assistant",
        "model": "tiny",
        "content": [{"type": "text", "text": "Hello"}],
        "stop_reason": "end_turn",
        "stop_sequence": None,
        "usage": {
            "input_tokens": prompt - 4,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": 4,
            "output_tokens": len(tokenizer.encode("Hello")),
        },
    }


async def test_the_events_of_a_stream(server):
    got = events((await post(server(), BODY | {"stream": True})).text)
    kinds = [event["type"] for event in got]
    deltas = kinds.count("content_block_delta")
    assert deltas > 3
    assert kinds == [
        "message_start",
        "ping",
        "content_block_start",
        *["content_block_delta"] * deltas,
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]
    assert got[0]["message"]["content"] == []
    assert got[0]["message"]["stop_reason"] is None
    assert got[2] == {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}
    assert got[3]["delta"]["type"] == "text_delta"
    assert "".join(event["delta"]["text"] for event in got[3 : 3 + deltas]) == TEXT
    assert got[-2]["delta"] == {"stop_reason": "end_turn", "stop_sequence": None}
    assert got[-2]["usage"]["output_tokens"] > deltas
    assert got[-1] == {"type": "message_stop"}


@pytest.mark.parametrize(
    ("extra", "reason", "sequence"),
    [({"stop_sequences": ["wor"]}, "stop_sequence", "wor"), ({"max_tokens": 2}, "max_tokens", None), ({}, "end_turn", None)],
)
async def test_stop_reasons(server, extra, reason, sequence):
    whole = (await post(server(), BODY | extra)).json()
    assert (whole["stop_reason"], whole["stop_sequence"]) == (reason, sequence)
    delta = events((await post(server(), BODY | extra | {"stream": True})).text)[-2]["delta"]
    assert delta == {"stop_reason": reason, "stop_sequence": sequence}


async def test_count_tokens_is_what_is_used(server):
    made = server()
    body = {name: value for name, value in BODY.items() if name != "max_tokens"} | {"system": [{"type": "text", "text": "s"}]}
    counted = (await post(made, body, "/v1/messages/count_tokens")).json()
    usage = (await post(made, body | {"max_tokens": 5})).json()["usage"]
    assert counted == {"input_tokens": usage["input_tokens"] + usage["cache_read_input_tokens"]}


async def test_a_last_message_of_the_assistant_is_continued(server, tokenizer):
    made = server()
    await post(made, BODY | {"messages": [*BODY["messages"], {"role": "assistant", "content": "The answer is ("}]})
    assert tokenizer.decode(made.backend.last.input_ids, skip_special_tokens=False).endswith("assistant\nThe answer is (")


def test_blocks_become_messages(model):
    request = MessagesRequest.model_validate(
        BODY
        | {
            "system": [{"type": "text", "text": "s", "cache_control": {"type": "ephemeral"}}, {"type": "text", "text": "t"}],
            "messages": [
                {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
                {
                    "role": "assistant",
                    "content": [{"type": "thinking", "thinking": "hm", "signature": "x"}, {"type": "text", "text": "c"}, USE],
                },
                {
                    "role": "user",
                    "content": [
                        {"type": "tool_result", "tool_use_id": "toolu_1", "content": [{"type": "text", "text": "r"}]},
                        {"type": "tool_result", "tool_use_id": "toolu_2", "content": "no", "is_error": True},
                        {
                            "type": "document",
                            "title": "T",
                            "source": {"type": "text", "media_type": "text/plain", "data": "d"},
                        },
                    ],
                },
            ],
            "tools": [{"name": "f", "description": "does", "input_schema": {"type": "object"}}],
            "tool_choice": {"type": "any", "disable_parallel_tool_use": True},
            "output_config": {"format": {"type": "json_schema", "schema": {"type": "object"}}},
            "stop_sequences": ["x"],
            "top_k": 4,
        }
    )
    assert to_chat(request, model) == {
        "model": "tiny",
        "messages": [
            {"role": "system", "content": "s\nt"},
            {"role": "user", "content": "a\nb"},
            {
                "role": "assistant",
                "content": "c",
                "reasoning_content": "hm",
                "tool_calls": [{"id": "toolu_1", "type": "function", "function": {"name": "f", "arguments": '{"a":"é"}'}}],
            },
            {"role": "tool", "tool_call_id": "toolu_1", "content": "r"},
            {"role": "tool", "tool_call_id": "toolu_2", "content": "Error: no"},
            {"role": "user", "content": "T\nd"},
        ],
        "tools": [{"type": "function", "function": {"name": "f", "description": "does", "parameters": {"type": "object"}}}],
        "tool_choice": "required",
        "parallel_tool_calls": False,
        "max_completion_tokens": 60,
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "output", "schema": {"type": "object"}, "strict": True},
        },
        "stop": ["x"],
        "top_k": 4,
    }


@pytest.mark.parametrize(("kind", "on"), [("enabled", True), ("adaptive", True), ("disabled", False)])
def test_thinking_is_the_templates_switch(model, kind, on):
    request = MessagesRequest.model_validate(BODY | {"thinking": {"type": kind}})
    assert "chat_template_kwargs" not in to_chat(request, model)
    model.chat_template = ChatTemplate(CHATML + "{{ enable_thinking }}")
    assert to_chat(request, model)["chat_template_kwargs"] == {"enable_thinking": on}


@pytest.mark.parametrize(
    ("extra", "name"),
    [
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 5000}, "max_tokens"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]}, "messages.0.content.0 is an image"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages.0.content.0.text"),
        ({"messages": [{"role": "user", "content": [USE]}]}, "messages.0.content.0"),
        ({"messages": [{"role": "assistant", "content": [USE]}]}, "tool_result"),
        ({"tools": [{"type": "web_search_20250305", "name": "w"}]}, "tools.0"),
        ({"tools": [{"name": "w"}]}, "tools.0.input_schema"),
        ({"tool_choice": {"type": "tool"}}, "tool_choice.name"),
        ({"thinking": {"type": "enabled", "budget_tokens": 99}}, "thinking.budget_tokens"),
        ({"stop_sequences": ["x" * 5000]}, "stop_sequences"),
        ({"top_p": 7}, "top_p"),
        ({"mcp_servers": []}, "mcp_servers"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_what_is_refused(server, extra, name, stream):
    answer = await post(server(), BODY | extra | {"stream": stream})
    assert answer.status_code == 400
    body = answer.json()
    assert (body["type"], body["error"]["type"]) == ("error", "invalid_request_error")
    assert name in body["error"]["message"]


async def test_errors_by_status(server, tokenizer):
    assert (await post(server(), BODY | {"model": "claude"})).json()["error"]["type"] == "not_found_error"
    full = await post(server(Script([], error=QueueFull("full", 7))), BODY)
    assert (full.status_code, full.json()["error"]["type"], full.headers["retry-after"]) == (429, "rate_limit_error", "7")
    broken = server(Script([tokenizer.encode("a"), []], Finish("error", message="gone", status=503)))
    last = events((await post(broken, BODY | {"stream": True})).text)[-1]
    assert last == {"type": "error", "error": {"type": "overloaded_error", "message": "gone"}}
    counted = await post(server(), {"model": "tiny", "messages": "?"}, "/v1/messages/count_tokens")
    assert counted.json()["error"]["type"] == "invalid_request_error"
