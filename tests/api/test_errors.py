"""What is wrong with a request is said in OpenAI's shape, with the right status and the field's name."""

from __future__ import annotations

import pytest

from raysgl.api.backend import QueueFull, Unavailable
from raysgl.messages import Finish

from .fake_backend import Script
from .test_shapes import events, post

MESSAGES = [{"role": "user", "content": "hi"}]
CHAT = {"messages": MESSAGES}
TEXT = {"prompt": "a"}


def error_of(response) -> dict:
    body = response.json()
    assert list(body) == ["error"]
    assert list(body["error"]) == ["message", "type", "param", "code"]
    return body["error"]


def chat_with(content: object) -> dict:
    return {"messages": [{"role": "user", "content": content}]}


@pytest.mark.parametrize(
    ("path", "body", "param", "code"),
    [
        ("chat/completions", {}, "messages", "missing_required_parameter"),
        ("chat/completions", {"messages": []}, "messages", "invalid_value"),
        ("chat/completions", {"messages": [{"content": "x"}]}, "messages.0.role", "missing_required_parameter"),
        ("chat/completions", {"messages": [{"role": "bob", "content": "x"}]}, "messages.0.role", "invalid_value"),
        ("chat/completions", chat_with(5), "messages.0.content", "invalid_value"),
        ("chat/completions", chat_with([{"type": "image_url", "image_url": {"url": "data:"}}]), "messages.0.content.0", None),
        ("chat/completions", chat_with([{"type": "text"}]), "messages.0.content.0.text", "missing_required_parameter"),
        ("chat/completions", CHAT | {"functions": [{"name": "f"}]}, "functions", "unsupported_parameter"),
        ("completions", TEXT | {"tools": [{"type": "function"}]}, "tools", "unknown_parameter"),
        ("chat/completions", CHAT | {"response_format": {"type": "json"}}, "response_format", "invalid_value"),
        ("chat/completions", CHAT | {"regex": 5}, "regex", "invalid_value"),
        ("chat/completions", CHAT | {"lora_path": "x"}, "lora_path", "unsupported_parameter"),
        ("chat/completions", CHAT | {"max_tokens": 1.5}, "max_tokens", "invalid_value"),
        ("chat/completions", CHAT | {"max_completion_tokens": -1}, "max_completion_tokens", "invalid_value"),
        ("chat/completions", CHAT | {"top_logprobs": 3}, "top_logprobs", "invalid_value"),
        ("chat/completions", CHAT | {"logprobs": True, "top_logprobs": 21}, "top_logprobs", "invalid_value"),
        ("chat/completions", CHAT | {"temperature": -1}, "temperature", "invalid_value"),
        ("chat/completions", CHAT | {"temperature": True}, "temperature", "invalid_value"),
        ("chat/completions", CHAT | {"top_p": 0}, "top_p", "invalid_value"),
        ("chat/completions", CHAT | {"n": 0}, "n", "invalid_value"),
        ("chat/completions", CHAT | {"stop": [""]}, "stop", "invalid_value"),
        ("chat/completions", CHAT | {"stop": ["x"] * 33}, "stop", "invalid_value"),
        ("chat/completions", CHAT | {"stop": "x" * 2000}, "stop", "invalid_value"),
        ("chat/completions", CHAT | {"stop_token_ids": [10**6]}, "stop_token_ids", "invalid_value"),
        ("chat/completions", CHAT | {"logit_bias": {"x": 1}}, "logit_bias", "invalid_value"),
        ("chat/completions", CHAT | {"logit_bias": {"99999": 1}}, "logit_bias", "invalid_value"),
        ("chat/completions", CHAT | {"stream_options": {"include_usage": True}}, "stream_options", "invalid_value"),
        (
            "chat/completions",
            CHAT | {"stream": True, "stream_options": {"x": 1}},
            "stream_options.x",
            "unknown_parameter",
        ),
        ("chat/completions", CHAT | {"temprature": 1}, "temprature", "unknown_parameter"),
        ("chat/completions", CHAT | {"tools": [{"type": "custom"}]}, "tools.0.type", "invalid_value"),
        ("chat/completions", CHAT | {"tool_choice": "required"}, "tool_choice", "invalid_value"),
        ("chat/completions", CHAT | {"chat_template_kwargs": {"tools": 1}}, "chat_template_kwargs", "invalid_value"),
        ("chat/completions", CHAT | {"reasoning_effort": "low"}, "reasoning_effort", "unsupported_parameter"),
        ("chat/completions", CHAT | {"continue_final_message": True}, "continue_final_message", "invalid_value"),
        ("chat/completions", CHAT | {"max_tokens": 500}, "max_tokens", "context_length_exceeded"),
        ("chat/completions", chat_with("many words " * 200), "messages", "context_length_exceeded"),
        ("chat/completions", CHAT | {"seed": 2**63}, "seed", "invalid_value"),
        ("completions", {}, "prompt", "missing_required_parameter"),
        ("completions", {"prompt": ""}, "prompt", "invalid_value"),
        ("completions", {"prompt": []}, "prompt", "invalid_value"),
        ("completions", {"prompt": [1, "a"]}, "prompt", "invalid_value"),
        ("completions", {"prompt": [[1], []]}, "prompt", "invalid_value"),
        ("completions", {"prompt": [-1]}, "prompt", "invalid_value"),
        ("completions", {"prompt": [True]}, "prompt", "invalid_value"),
        ("completions", TEXT | {"best_of": 2}, "best_of", "unsupported_parameter"),
        ("completions", TEXT | {"suffix": "x"}, "suffix", "unsupported_parameter"),
        ("completions", TEXT | {"logprobs": 21}, "logprobs", "invalid_value"),
        ("completions", TEXT | {"logprobs": True}, "logprobs", "invalid_value"),
        ("completions", TEXT | {"min_tokens": 17}, "min_tokens", "invalid_value"),
        ("completions", TEXT | {"messages": MESSAGES}, "messages", "unknown_parameter"),
        ("completions", {"prompt": "a" * 100_000}, "prompt", "context_length_exceeded"),
    ],
)
async def test_a_bad_field_is_named(server, path, body, param, code):
    fake = server()
    response = await post(fake, f"/v1/{path}", body)
    error = error_of(response)
    assert response.status_code == 400
    assert error["type"] == "invalid_request_error"
    assert error["param"] == param
    assert code is None or error["code"] == code
    assert param.split(".")[-1] in error["message"] or code == "context_length_exceeded"
    assert not fake.backend.streams


async def test_a_prompt_that_never_fits_says_both_numbers(server, model):
    error = error_of(await post(server(), "/v1/completions", {"prompt": [5] * 512}))
    assert "512 tokens" in error["message"]
    assert "context length" in error["message"]
    model.max_total_tokens = 256
    error = error_of(await post(server(), "/v1/completions", {"prompt": [5] * 300}))
    assert "300" in error["message"]
    assert "256" in error["message"]
    assert "max_total_tokens" in error["message"]


@pytest.mark.parametrize(
    "field",
    [
        {"tools": []},
        {"tools": None},
        {"tool_choice": "none"},
        {"response_format": {"type": "text"}},
        {"parallel_tool_calls": True},
        {"user": "me"},
        {"metadata": {"a": "b"}},
        {"store": False},
        {"service_tier": "auto"},
        {"temperature": None},
        {"max_tokens": None},
        {"stop": None},
        {"logit_bias": {}},
        {"top_logprobs": 0},
        {"seed": -(2**63)},
    ],
)
async def test_fields_that_ask_for_nothing_are_accepted(server, field):
    assert (await post(server(), "/v1/chat/completions", CHAT | field)).status_code == 200


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'"x"', b"\xff\xfe", b'{"a": NaN}', b"[" * 5000])
async def test_malformed_json(server, content):
    async with server().client() as client:
        response = await client.post("/v1/completions", content=content)
    assert response.status_code == 400
    assert error_of(response)["code"] == "invalid_json"


async def test_content_type(server):
    async with server().client() as client:
        response = await client.post("/v1/completions", data={"prompt": "a"})
        assert (response.status_code, error_of(response)["code"]) == (400, "invalid_content_type")
        headers = {"content-type": "Application/JSON; charset=utf-8"}
        response = await client.post("/v1/completions", content=b'{"prompt": "a"}', headers=headers)
        assert response.status_code == 200


async def test_model(server, model):
    fake = server()
    unknown = await post(fake, "/v1/completions", TEXT | {"model": "gpt-4"})
    assert unknown.status_code == 404
    assert error_of(unknown)["code"] == "model_not_found"
    fake.backend.models["other"] = model
    assert error_of(await post(fake, "/v1/completions", TEXT))["param"] == "model"


async def test_body_too_large(server):
    fake = server(max_body_bytes=1024)
    response = await post(fake, "/v1/completions", {"prompt": "a" * 2000})
    assert response.status_code == 413
    assert error_of(response)["code"] == "body_too_large"

    async def parts():
        for _ in range(20):
            yield b" " * 100

    async with fake.client() as client:
        assert (await client.post("/v1/completions", content=parts())).status_code == 413


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("prompt", ["a", ["a", "b"]])
@pytest.mark.parametrize(
    ("raised", "status", "retry"),
    [(QueueFull("full", 2.5), 429, "3"), (Unavailable("starting"), 503, "1"), (RuntimeError("secret"), 500, None)],
)
async def test_submit_fails(server, stream, prompt, raised, status, retry):
    response = await post(server(Script([], error=raised)), "/v1/completions", {"prompt": prompt, "stream": stream})
    assert response.status_code == status
    assert response.headers.get("retry-after") == retry
    assert "secret" not in error_of(response)["message"]


async def test_of_several_prompts_one_is_refused(server, tokenizer):
    """The others are given back."""
    bad = tokenizer.encode("b")
    fake = server(lambda ids, *_: Script([[5]], hang=True, error=QueueFull("full", 1) if ids == bad else None))
    response = await post(fake, "/v1/completions", {"prompt": ["a", "b", "c"]})
    assert response.status_code == 429
    assert [stream.aborted for stream in fake.backend.streams] == [{0}, {0}]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("finish", "status"),
    [
        (Finish("error", message="the prompt has 9 tokens", status=400), 400),
        (Finish("abort", message="1 request waits", status=429), 429),
        (Finish("abort", message="draining", status=503), 503),
        (Finish("error", message="CUDA: device-side assert in /home/x.py", status=500), 500),
    ],
)
async def test_the_engine_refuses_before_the_first_token(server, stream, finish, status):
    """Also a stream has a real status then."""
    response = await post(server(Script([[]], finish)), "/v1/completions", TEXT | {"stream": stream})
    assert response.status_code == status
    error = error_of(response)
    assert "/home" not in error["message"]
    assert (status == 500) != (finish.message == error["message"])


async def test_an_error_in_a_stream_is_an_event(server, tokenizer):
    script = Script([tokenizer.encode("a"), []], Finish("error", message="its replica died", status=503))
    chunks = events((await post(server(script), "/v1/completions", TEXT | {"stream": True})).text)
    assert chunks[0]["choices"][0]["text"] == "a"
    assert chunks[-1]["error"]["code"] == "unavailable"
    response = await post(server(script), "/v1/completions", TEXT)
    assert response.status_code == 503


async def test_paths_and_methods(server):
    async with server().client() as client:
        missing = await client.get("/v2/nothing")
        assert (missing.status_code, error_of(missing)["code"]) == (404, "not_found")
        wrong = await client.get("/v1/completions")
        assert wrong.status_code == 405
        assert error_of(wrong)["type"] == "invalid_request_error"
