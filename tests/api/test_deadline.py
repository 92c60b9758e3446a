"""X-Request-Timeout: what it may be, and what a client is told when its time is up."""

from __future__ import annotations

import json

import pytest

from raysgl.messages import Finish

from .fake_backend import Script
from .test_shapes import events

CHAT = {"messages": [{"role": "user", "content": "hi"}]}


async def post(server, path, body, headers=None):
    async with server.client() as client:
        return await client.post(path, json=body, headers=headers)


@pytest.mark.parametrize("given", ["0", "-1", "soon", "nan", "inf", "1e9", ""])
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/generate"])
async def test_a_value_that_is_no_time_is_refused(server, given, path):
    body = CHAT if path != "/generate" else {"text": "x"}
    answer = await post(server(Script([[5]])), path, body, headers={"X-Request-Timeout": given})
    assert answer.status_code == 400
    assert "X-Request-Timeout" in answer.text and "above 0" in answer.text


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", CHAT),
        ("/v1/completions", {"prompt": ["x", "y"]}),
        ("/v1/messages", {**CHAT, "model": "tiny", "max_tokens": 3}),
        ("/v1/responses", {"input": "x"}),
        ("/generate", {"text": "x"}),
    ],
)
async def test_every_endpoint_that_generates_hands_on_what_is_left(server, path, body):
    fake = server(Script([[5]]))
    answer = await post(fake, path, body, headers={"x-request-timeout": "7.5"})
    assert answer.status_code == 200, answer.text
    assert all(0 < stream.settings["timeout_s"] <= 7.5 for stream in fake.backend.streams)


async def test_without_the_header_there_is_no_deadline(server):
    fake = server(Script([[5]]))
    await post(fake, "/v1/chat/completions", CHAT)
    assert fake.backend.last.settings["timeout_s"] is None


async def test_too_late_before_a_token_is_a_504_and_behind_one_an_answer(server):
    late = Finish("abort", message="the time was up", status=504)
    answer = await post(server(Script([], finish=late)), "/v1/chat/completions", {**CHAT, "stream": True})
    error = answer.json()["error"]
    assert (answer.status_code, error["type"], error["code"]) == (504, "timeout_error", "deadline_exceeded")
    assert error["message"] == "the time was up"
    cut = Script([[5, 6]], finish=Finish("abort", message="the time was up"))
    answer = await post(server(cut), "/v1/chat/completions", CHAT)
    assert answer.status_code == 200
    assert (answer.json()["choices"][0]["finish_reason"], answer.json()["usage"]["completion_tokens"]) == ("abort", 2)
    answer = await post(server(cut), "/v1/chat/completions", {**CHAT, "stream": True})
    assert events(answer.text)[-1]["choices"][0]["finish_reason"] == "abort"


async def test_a_refusal_says_when_to_come_back(server):
    full = Finish("abort", message="too many", status=429, retry_after=6.2)
    answer = await post(server(Script([], finish=full)), "/v1/chat/completions", CHAT)
    assert (answer.status_code, answer.headers["retry-after"]) == (429, "7")
    assert json.loads(answer.content)["error"]["code"] == "queue_full"
