"""A model that thinks and calls tools, for the tests of every API that has them."""

from __future__ import annotations

CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOLS = [
    {"type": "function", "function": {"name": "weather", "description": "The weather", "parameters": CITY}},
    {"type": "function", "function": {"name": "now"}},
]
ASK = {"messages": [{"role": "user", "content": "hi"}], "rid": "r1", "tools": TOOLS}
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Zürich 👩‍👩‍👧"}}\n</tool_call>'
SAID = f'<think>\nHm é\n</think>\n\nLet me see.\n{CALL}\n<tool_call>{{"name": "now", "arguments": {{}}}}</tool_call>'
INSIDE = "{{ messages[-1].content }}{% if add_generation_prompt %}<|im_start|>{% if enable_thinking is not false %}<think>\n{% else %}<think></think>{% endif %}{% endif %}"
"""A template that opens the reasoning itself, or closes it."""
MARKS = ("<think>", "</think>", "<tool_call>", "</tool_call>")


async def post(server, body: dict, path: str = "/v1/chat/completions"):
    async with server.client() as client:
        response = await client.post(path, json=body)
    assert response.status_code == 200, response.text
    return response


async def refused(server, body: dict, path: str = "/v1/chat/completions") -> dict:
    async with server.client() as client:
        response = await client.post(path, json=body)
    assert response.status_code == 400, response.text
    return response.json()["error"]


def prompt_of(server) -> str:
    stream = server.backend.last
    return server.backend.models["tiny"].tokenizer.decode(stream.input_ids, skip_special_tokens=False)
