"""An unmodified OpenAI client against a live server."""

from __future__ import annotations

import openai
import pytest

from raysgl.api.backend import QueueFull
from raysgl.messages import Finish

from .fake_backend import Script

MESSAGES = [{"role": "user", "content": "hi"}]
TEXT = "Hello 👩‍👩‍👧 world"


@pytest.fixture
def connect(server):
    """connect(script) -> (client, backend)"""
    entered = []

    def start(script=None):
        made = server(script)
        live = made.live()
        port = live.__enter__()
        entered.append(live)
        client = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0, timeout=20)
        entered.append(client)
        return client, made.backend

    yield start
    for manager in reversed(entered):
        manager.__exit__(None, None, None)


def test_chat(connect):
    client, backend = connect()
    answer = client.chat.completions.create(model="tiny", messages=MESSAGES, temperature=0, max_completion_tokens=50)
    assert answer.choices[0].message.content == TEXT
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.prompt_tokens_details.cached_tokens == 0
    assert backend.last.sampling.greedy
    assert backend.last.sampling.max_new_tokens == 50
    assert backend.last.request_id == answer.id


def test_chat_stream(connect):
    client, _ = connect()
    chunks = list(
        client.chat.completions.create(model="tiny", messages=MESSAGES, stream=True, stream_options={"include_usage": True})
    )
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == TEXT
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-1].usage.completion_tokens > 5
    assert [c.choices[0].finish_reason for c in chunks if c.choices and c.choices[0].finish_reason] == ["stop"]


def test_stream_helper_puts_the_same_together(connect):
    client, _ = connect()
    with client.chat.completions.stream(model="tiny", messages=MESSAGES, n=2) as stream:
        for _ in stream:
            pass
        final = stream.get_final_completion()
    assert [choice.message.content for choice in final.choices] == [TEXT, TEXT]


def test_n_logprobs_stop(connect):
    client, _ = connect()
    answer = client.chat.completions.create(
        model="tiny", messages=MESSAGES, n=3, logprobs=True, top_logprobs=2, stop=["world", "x"]
    )
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    for choice in answer.choices:
        assert choice.message.content == "Hello 👩‍👩‍👧 "
        assert choice.matched_stop == "world"
        assert len(choice.logprobs.content[0].top_logprobs) == 2


def test_completions(connect, tokenizer):
    client, _ = connect()
    answer = client.completions.create(model="tiny", prompt=["ab", "cd"], echo=True, max_tokens=2, logprobs=1)
    assert [choice.text for choice in answer.choices] == ["abHe", "cdHe"]
    assert answer.choices[0].logprobs.text_offset == [0, 1, 2, 3]
    streamed = client.completions.create(model="tiny", prompt=tokenizer.encode("ab"), stream=True, max_tokens=50)
    assert "".join(chunk.choices[0].text for chunk in streamed) == TEXT


def test_models(connect):
    client, _ = connect()
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").max_model_len == 512


def test_errors(connect):
    client, _ = connect()
    with pytest.raises(openai.BadRequestError) as bad:
        client.chat.completions.create(model="tiny", messages=MESSAGES, temperature=-1)
    assert (bad.value.param, bad.value.code) == ("temperature", "invalid_value")
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="gpt", messages=MESSAGES)
    full, _ = connect(Script([], error=QueueFull("full", 7)))
    with pytest.raises(openai.RateLimitError) as limited:
        full.chat.completions.create(model="tiny", messages=MESSAGES, stream=True)
    assert limited.value.response.headers["retry-after"] == "7"


def test_an_error_in_a_stream_raises(connect, tokenizer):
    client, _ = connect(Script([tokenizer.encode("a"), []], Finish("error", message="gone", status=503)))
    stream = client.chat.completions.create(model="tiny", messages=MESSAGES, stream=True)
    with pytest.raises(openai.APIError, match="gone"):
        list(stream)


def test_request_ids(connect):
    client, backend = connect()
    raw = client.chat.completions.with_raw_response.create(
        model="tiny", messages=MESSAGES, extra_headers={"X-Request-Id": "mine-1"}
    )
    assert raw.headers["x-request-id"] == "mine-1"
    assert raw.parse().id == backend.last.request_id == "mine-1"
    client.chat.completions.create(model="tiny", messages=MESSAGES, extra_body={"rid": "r-2", "cache_salt": "s"})
    assert backend.last.request_id == "r-2"
    assert backend.last.settings["extra_key"] == "s"


def test_sessions(connect):
    client, backend = connect()

    def session(headers, **body):
        client.chat.completions.create(model="tiny", messages=MESSAGES, extra_headers=headers, extra_body=body)
        return backend.last.settings["session"]

    assert session({}) == ""
    assert session({"X-Session-Id": "a"}) == session({"X-SMG-Routing-Key": "a"}) == "a"
    assert session({"X-Session-Id": "a"}, prompt_cache_key="b") == "b"
