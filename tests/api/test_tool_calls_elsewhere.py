"""Tools and reasoning in /v1/messages and /v1/responses."""

from __future__ import annotations

import json

from .tooled import ASK, CITY, TOOLS, post, prompt_of, refused

MESSAGES = {
    "model": "tiny",
    "max_tokens": 500,
    "messages": ASK["messages"],
    "tools": [{"name": "weather", "input_schema": CITY}, {"name": "now", "input_schema": {"type": "object"}}],
}
BLOCKS = [
    ("thinking", "Hm é"),
    ("text", "Let me see."),
    ("tool_use", ("weather", {"city": "Zürich 👩‍👩‍👧"})),
    ("tool_use", ("now", {})),
]


def blocks(content: list) -> list:
    def inside(block):
        return (block["name"], block["input"]) if block["type"] == "tool_use" else block[block["type"]]

    return [(block["type"], inside(block)) for block in content]


async def test_messages(saying):
    made = saying()
    body = (await post(made, MESSAGES, "/v1/messages")).json()
    assert (blocks(body["content"]), body["stop_reason"]) == (BLOCKS, "tool_use")
    uses = [block for block in body["content"] if block["type"] == "tool_use"]
    results = [{"type": "tool_result", "tool_use_id": use["id"], "content": "21 degrees"} for use in uses]
    turn = [{"role": "assistant", "content": body["content"]}, {"role": "user", "content": results}]
    await post(made, MESSAGES | {"messages": [*ASK["messages"], *turn]}, "/v1/messages")
    prompt = prompt_of(made)
    assert prompt.count("21 degrees") == 2
    assert '{"name": "weather", "arguments": {"city": "Zürich 👩‍👩‍👧"}}' in prompt
    counted = await post(made, {name: MESSAGES[name] for name in ("model", "messages", "tools")}, "/v1/messages/count_tokens")
    usage = body["usage"]
    assert counted.json()["input_tokens"] == usage["input_tokens"] + usage["cache_read_input_tokens"]


async def test_messages_in_a_stream(saying):
    """As Anthropic's SDK puts them together."""
    text = (await post(saying(cuts=[5, 40, 60]), MESSAGES | {"stream": True}, "/v1/messages")).text
    content: list[dict] = []
    for event in [json.loads(block.split("\ndata: ")[1]) for block in text.removesuffix("\n\n").split("\n\n")]:
        match event["type"]:
            case "content_block_start":
                content.append(event["content_block"] | {"partial": ""})
            case "content_block_delta":
                delta = event["delta"]
                block = content[event["index"]]
                name = {"thinking_delta": "thinking", "text_delta": "text", "input_json_delta": "partial_json"}.get(
                    delta["type"]
                )
                if name is not None:
                    block["partial" if name == "partial_json" else name] += delta[name]
            case "message_delta":
                assert event["delta"]["stop_reason"] == "tool_use"
    for block in content:
        if block["type"] == "tool_use":
            block["input"] = json.loads(block["partial"] or "{}")
    assert blocks(content) == BLOCKS


RESPONSES_TOOLS = [{"type": "function", **tool["function"]} for tool in TOOLS]


def items(output: list) -> list:
    return [
        (item.type, (item.name, json.loads(item.arguments)) if item.type == "function_call" else item.content[0].text)
        for item in output
    ]


def test_responses(tool_client):
    whole = tool_client.responses.create(model="tiny", input="hi", tools=RESPONSES_TOOLS)
    with tool_client.responses.stream(model="tiny", input="hi", tools=RESPONSES_TOOLS) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_response()
    assert (
        items(whole.output)
        == items(final.output)
        == [
            ("reasoning", "Hm é"),
            ("message", "Let me see."),
            ("function_call", ("weather", {"city": "Zürich 👩‍👩‍👧"})),
            ("function_call", ("now", {})),
        ]
    )
    assert whole.status == "completed"
    assert kinds.count("response.function_call_arguments.done") == kinds.count("response.output_item.done") - 2 == 2
    history = [{"role": "user", "content": "hi"}, *(item.model_dump(exclude_none=True) for item in whole.output)]
    history += [
        {"type": "function_call_output", "call_id": item.call_id, "output": "21 degrees"}
        for item in whole.output
        if item.type == "function_call"
    ]
    again = tool_client.responses.create(model="tiny", input=history, tools=RESPONSES_TOOLS)
    assert again.usage.input_tokens > whole.usage.input_tokens + 40


async def test_what_is_wrong_is_named_as_there(saying, thinking):
    wrong = {"type": "objekt"}
    tool = {"name": "f", "input_schema": wrong}
    assert (await refused_messages(saying(), {"tools": [tool]})).startswith("tools.0.input_schema is no JSON Schema")
    error = await refused(
        saying(), {"input": "hi", "tools": [{"type": "function", "name": "f", "parameters": wrong}]}, "/v1/responses"
    )
    assert error["param"] == "tools.0.parameters"
    thinking.tool_call_parser = None
    assert "tool_call_parser" in await refused_messages(saying(), {})


async def refused_messages(server, fields: dict) -> str:
    async with server.client() as client:
        response = await client.post("/v1/messages", json=MESSAGES | fields)
    assert response.status_code == 400
    return response.json()["error"]["message"]
