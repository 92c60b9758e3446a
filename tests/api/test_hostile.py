"""Requests made to stall the server: each is refused before it costs much. And which web pages may call."""

from __future__ import annotations

import asyncio

import pytest

from raysgl.api import http, protocol
from raysgl.api.errors import ApiError
from raysgl.api.prompts import MAX_PROMPTS

from .fake_backend import Script
from .test_shapes import post

ORIGIN = {"origin": "https://chat.example"}


@pytest.mark.parametrize(
    ("body", "param", "code"),
    [
        ({"messages": [{"role": "user", "content": "x"}] * 40_000}, "messages", "too_many_values"),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "x"}] * 50_000}]}, "messages", "too_many_values"),
        ({"messages": [], "input_ids": [1] * 2_000_001}, "input_ids", "too_many_values"),
        ({"messages": [], "tools": [{"a": 1}] * 60_000}, "tools", "too_many_values"),
        ({"messages": [], "logit_bias": dict.fromkeys(map(str, range(110_000)), 1)}, "logit_bias", "too_many_values"),
    ],
)
async def test_too_many_values(server, body, param, code):
    error = (await post(server(), "/v1/chat/completions", body)).json()["error"]
    assert (error["param"], error["code"]) == (param, code)


async def test_bodies_of_other_sizes(server):
    fake = server()
    assert (await post(fake, "/tokenize", {"prompt": "x" * (4 * 2**20)})).status_code == 413
    assert (await post(fake, "/abort_request", {"rid": "x" * 65536})).status_code == 413
    small = server(max_body_bytes=2048)
    assert (await post(small, "/abort_request", {"rid": "x" * 3000})).status_code == 413


async def test_token_ids_are_not_counted(server):
    response = await post(server(), "/v1/completions", {"prompt": [5] * 150_000})
    assert response.json()["error"]["code"] == "context_length_exceeded"


@pytest.mark.parametrize(("path", "field"), [("/v1/completions", "prompt"), ("/tokenize", "prompt"), ("/generate", "text")])
async def test_too_many_prompts(server, path, field):
    response = await post(server(), path, {field: ["x"] * (MAX_PROMPTS + 1)})
    assert response.status_code == 400
    assert response.json()["error"]["param"] == field


async def test_too_many_sequences(server):
    fake = server(Script([[5]]))
    response = await post(fake, "/v1/completions", {"prompt": ["x"] * 100, "n": 100})
    assert (response.status_code, response.json()["error"]["param"]) == (400, "n")
    assert not fake.backend.streams


@pytest.mark.parametrize("open_, close", [("[", "]"), ('{"a":', "}")])
@pytest.mark.parametrize("field", ["messages", "prompt", "stop", "logit_bias", "chat_template_kwargs", "temperature"])
async def test_deep_bodies_are_refused(server, open_, close, field):
    fake = server()
    body = f'{{"{field}": {open_ * 1000}1{close * 1000}}}'
    async with fake.client() as client:
        for path in ("/v1/chat/completions", "/v1/completions", "/tokenize", "/generate", "/v1/messages", "/v1/responses"):
            assert (await client.post(path, content=body)).status_code == 400


async def test_a_prompt_far_too_long_is_tokenised_only_in_part(server, model, monkeypatch):
    lengths = []
    encode = model.tokenizer.encode
    monkeypatch.setattr(
        model.tokenizer, "encode", lambda text, special=True: lengths.append(len(text)) or encode(text, special)
    )
    monkeypatch.setattr(model.tokenizer, "fewest_tokens", lambda text: 0)
    response = await post(server(), "/v1/completions", {"prompt": "many words " * 100_000})
    assert response.json()["error"]["code"] == "context_length_exceeded"
    assert max(lengths) == 512 * 16


async def test_tokenising_leaves_the_loop_free(model):
    """The library must give the GIL back: the loop turns many times while a long text is tokenised."""
    task = asyncio.create_task(model.tokenizer.encode_async("hello world, " * 100_000))
    turns = 0
    while not task.done():
        await asyncio.sleep(0.001)
        turns += 1
    assert turns > 20
    assert len(task.result()) > 100_000


async def test_a_silent_body_ends(monkeypatch):
    monkeypatch.setattr(http, "BODY_TIMEOUT_S", 0.01)
    with pytest.raises(ApiError) as error:
        await http.read_body({}, asyncio.Event().wait)
    assert error.value.status == 408


def test_what_is_shown_of_a_bad_value_is_short():
    for value in ("x" * 10**6, [["y" * 1000] * 1000] * 1000, {"a": {"b": {"c": {"d": {"e": {}}}}}}):
        with pytest.raises(ApiError) as error:
            protocol.validate(protocol.CompletionRequest, {"prompt": "x", "temperature": value})
        assert len(error.value.message) < 200


async def test_no_cors_by_default(server):
    async with server().client() as client:
        assert "access-control-allow-origin" not in (await client.get("/v1/models", headers=ORIGIN)).headers
        asked = await client.options("/v1/models", headers=ORIGIN | {"access-control-request-method": "GET"})
        assert asked.status_code == 405


async def test_cors(server):
    fake = server(cors_allow_origins=["https://chat.example"], api_key="k")
    async with fake.client() as client:
        headers = ORIGIN | {"access-control-request-method": "POST", "access-control-request-headers": "authorization"}
        asked = await client.options("/v1/completions", headers=headers)
        assert asked.status_code == 200
        assert asked.headers["access-control-allow-origin"] == "https://chat.example"
        assert "authorization" in asked.headers["access-control-allow-headers"]
        body = {"prompt": "x"}
        answer = await client.post("/v1/completions", json=body, headers=ORIGIN | {"authorization": "Bearer k"})
        assert answer.headers["access-control-allow-origin"] == "https://chat.example"
        assert "x-request-id" in answer.headers["access-control-expose-headers"]
        refused = await client.post("/v1/completions", json=body, headers=ORIGIN)
        assert refused.status_code == 401
        assert refused.headers["access-control-allow-origin"] == "https://chat.example"
        other = await client.post("/v1/completions", json=body, headers={"origin": "https://evil.example"})
        assert "access-control-allow-origin" not in other.headers
