"""Golden bodies: every member, every null, in whole answers and in streams."""

from __future__ import annotations

import json

import pytest

from raysgl.messages import Finish

from .fake_backend import Script

CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "rid": "r1"}
TEXT = {"model": "tiny", "prompt": "ab", "rid": "r1"}


def usage(prompt: int, completion: int, cached: int) -> dict:
    return {
        "prompt_tokens": prompt,
        "total_tokens": prompt + completion,
        "completion_tokens": completion,
        "prompt_tokens_details": {"cached_tokens": cached},
        "reasoning_tokens": 0,
        "completion_tokens_details": None,
    }


def events(body: str) -> list[dict]:
    """A stream's chunks; the last must be [DONE]."""
    assert body.endswith("\n\n")
    lines = body.removesuffix("\n\n").split("\n\n")
    assert all(line.startswith("data: ") for line in lines)
    assert lines[-1] == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]


async def post(server, path: str, body: dict):
    async with server.client() as client:
        return await client.post(path, json=body)


@pytest.fixture
def greeting(server, tokenizer):
    """Answers "Hi é" in three steps, the last with half a character and the stop token."""
    ids = tokenizer.encode("Hi") + tokenizer.encode(" ")
    e = tokenizer.encode("é", add_special_tokens=False)
    halves = e if len(e) == 2 else [tokenizer._backend.token_to_id("Ã"), tokenizer._backend.token_to_id("©")]
    return server(Script([ids, halves[:1], [*halves[1:], 2]], Finish("stop", 2), cached_tokens=16))


async def test_chat(greeting):
    response = await post(greeting, "/v1/chat/completions", CHAT)
    body = response.json()
    assert body.pop("created") > 1_700_000_000
    assert body == {
        "id": "r1",
        "object": "chat.completion",
        "model": "tiny",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "Hi é", "reasoning_content": None},
                "logprobs": None,
                "finish_reason": "stop",
                "matched_stop": 2,
            }
        ],
        "usage": usage(18, 6, 16),
        "metadata": {"weight_version": "default"},
    }


async def test_chat_stream(greeting):
    response = await post(greeting, "/v1/chat/completions", CHAT | {"stream": True, "stream_options": {"include_usage": True}})
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert response.headers["x-accel-buffering"] == "no"
    chunks = events(response.text)
    heads = {(chunk.pop("id"), chunk.pop("object"), chunk.pop("created"), chunk.pop("model")) for chunk in chunks}
    assert len(heads) == 1
    assert next(iter(heads))[:2] == ("r1", "chat.completion.chunk")

    def chunk(delta: dict, finish: str | None = None, matched: int | None = None) -> dict:
        delta = {"role": None, "content": None, "reasoning_content": None} | delta
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish, "matched_stop": matched}
        return {"choices": [choice], "usage": None}

    assert chunks == [
        chunk({"role": "assistant", "content": ""}),
        chunk({"content": "Hi "}),
        chunk({"content": "é"}),
        chunk({}, "stop", 2),
        {"choices": [], "usage": usage(18, 6, 16)},
    ]


async def test_completion(greeting):
    body = (await post(greeting, "/v1/completions", TEXT)).json()
    assert body.pop("created")
    assert body == {
        "id": "r1",
        "object": "text_completion",
        "model": "tiny",
        "choices": [{"index": 0, "text": "Hi é", "logprobs": None, "finish_reason": "stop", "matched_stop": 2}],
        "usage": usage(2, 6, 16),
        "metadata": {"weight_version": "default"},
    }


async def test_completion_stream(greeting):
    body = TEXT | {"stream": True, "echo": True, "stream_options": {"continuous_usage_stats": True}}
    chunks = events((await post(greeting, "/v1/completions", body)).text)
    choices = [chunk["choices"][0] for chunk in chunks]
    assert [choice["text"] for choice in choices] == ["abHi ", "é", ""]
    assert choices[-1] == {"index": 0, "text": "", "logprobs": None, "finish_reason": "stop", "matched_stop": 2}
    assert [chunk["usage"]["completion_tokens"] for chunk in chunks] == [3, 6, 6]
    assert chunks[-1]["usage"] == usage(2, 6, 16)


async def test_chat_logprobs(greeting, tokenizer):
    body = CHAT | {"logprobs": True, "top_logprobs": 2}
    choice = (await post(greeting, "/v1/chat/completions", body)).json()["choices"][0]
    content = choice["logprobs"]["content"]
    assert b"".join(bytes(entry["bytes"]) for entry in content).decode() == "Hi é"
    first = tokenizer.encode("H")[0]
    assert content[0] == {
        "token": "H",
        "bytes": [72],
        "logprob": -first / 1000,
        "top_logprobs": [
            {"token": "H", "bytes": [72], "logprob": -first / 1000},
            {"token": "I", "bytes": [73], "logprob": -(first + 1) / 1000},
        ],
    }
    streamed = events((await post(greeting, "/v1/chat/completions", body | {"stream": True})).text)
    parts = [c["choices"][0]["logprobs"]["content"] for c in streamed if c["choices"][0]["logprobs"]]
    assert [entry for part in parts for entry in part] == content


async def test_completion_logprobs_with_echo(greeting, tokenizer):
    a, b = (tokenizer.encode(char)[0] for char in "ab")
    body = TEXT | {"logprobs": 1, "echo": True}
    logprobs = (await post(greeting, "/v1/completions", body)).json()["choices"][0]["logprobs"]
    assert logprobs["tokens"] == ["a", "b", "H", "i", " ", "bytes:\\xc3", "bytes:\\xa9"]
    assert logprobs["text_offset"] == [0, 1, 2, 3, 4, 5, 5]
    assert logprobs["token_logprobs"][:2] == [None, -b / 1000]
    assert logprobs["top_logprobs"][:2] == [None, {"b": -b / 1000}]
    assert a != b
    streamed = events((await post(greeting, "/v1/completions", body | {"stream": True})).text)
    parts = [c["choices"][0]["logprobs"] for c in streamed if c["choices"][0]["logprobs"]]
    assert {name: [x for part in parts for x in part[name]] for name in logprobs} == logprobs


async def test_logprobs_zero_is_the_token_alone(greeting):
    logprobs = (await post(greeting, "/v1/completions", TEXT | {"logprobs": 0})).json()["choices"][0]["logprobs"]
    assert len(logprobs["token_logprobs"]) == 5
    assert logprobs["top_logprobs"] is None


async def test_several_prompts_and_samples(server, tokenizer):
    """Index is prompt * n + sample, and every sequence answers its own prompt."""
    script = lambda ids, sampling, index: Script([ids, tokenizer.encode(str(index))], cached_tokens=len(ids))
    two = server(script)
    body = {"prompt": ["ab", "c"], "n": 2, "max_tokens": 10}
    answer = (await post(two, "/v1/completions", body)).json()
    assert [(c["index"], c["text"]) for c in answer["choices"]] == [(0, "ab0"), (1, "ab1"), (2, "c0"), (3, "c1")]
    assert answer["usage"] == usage(3, 3 + 3 + 2 + 2, 3)
    texts = ["", "", "", ""]
    for chunk in events((await post(two, "/v1/completions", body | {"stream": True})).text):
        texts[chunk["choices"][0]["index"]] += chunk["choices"][0]["text"]
    assert texts == ["ab0", "ab1", "c0", "c1"]


async def test_token_ids_as_prompts(server, tokenizer):
    ids = tokenizer.encode("abc")
    fake = server()
    one = (await post(fake, "/v1/completions", {"prompt": ids, "echo": True, "max_tokens": 1})).json()
    assert one["choices"][0]["text"] == "abcH"
    assert fake.backend.last.input_ids == ids
    two = (await post(fake, "/v1/completions", {"prompt": [ids, ids[:1]], "max_tokens": 1})).json()
    assert two["usage"]["prompt_tokens"] == 4
    wrong = await post(fake, "/v1/completions", {"prompt": [*ids, 10**6]})
    assert (wrong.status_code, wrong.json()["error"]["param"]) == (400, "prompt")


async def test_prompt_alone_can_be_scored(server):
    body = {"prompt": "abc", "max_tokens": 0, "echo": True, "logprobs": 0}
    choice = (await post(server(Script([[]])), "/v1/completions", body)).json()["choices"][0]
    assert choice["text"] == "abc"
    assert len(choice["logprobs"]["token_logprobs"]) == 3
    assert choice["finish_reason"] == "length"


async def test_models(server):
    async with server().client() as client:
        card = {
            "id": "tiny",
            "object": "model",
            "created": 1_700_000_000,
            "owned_by": "raysgl",
            "root": "tiny",
            "parent": None,
            "max_model_len": 512,
        }
        assert (await client.get("/v1/models")).json() == {"object": "list", "data": [card]}
        assert (await client.get("/v1/models/tiny")).json() == card
        missing = await client.get("/v1/models/some/other")
        assert missing.status_code == 404
        assert missing.json() == {
            "error": {
                "message": "The model 'some/other' does not exist",
                "type": "invalid_request_error",
                "param": "model",
                "code": "model_not_found",
            }
        }
