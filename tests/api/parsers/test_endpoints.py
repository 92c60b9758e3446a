"""The two stateless parser services over HTTP."""

from __future__ import annotations

TOOL = {"type": "function", "function": {"name": "now", "description": "the time", "parameters": {"type": "object"}}}


async def test_parse_function_call(server):
    body = {
        "text": 'Wait. <tool_call>{"name": "now", "arguments": {}}</tool_call>',
        "tools": [TOOL],
        "tool_call_parser": "qwen25",
    }
    async with server().client() as client:
        answer = await client.post("/parse_function_call", json=body)
        assert answer.json() == {"normal_text": "Wait.", "calls": [{"tool_index": 0, "name": "now", "parameters": "{}"}]}
        refused = await client.post("/parse_function_call", json=body | {"tool_call_parser": "x"})
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "tool_call_parser")


async def test_separate_reasoning(server):
    async with server().client() as client:
        body = {"text": "<think>Hm.</think>Yes.", "reasoning_parser": "qwen3"}
        answer = await client.post("/separate_reasoning", json=body)
        assert answer.json() == {"reasoning_text": "Hm.", "text": "Yes."}
        refused = await client.post("/separate_reasoning", json=body | {"reasoning_parser": "x"})
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "reasoning_parser")
