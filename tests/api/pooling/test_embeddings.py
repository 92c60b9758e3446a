"""POST /v1/embeddings and /encode."""

from __future__ import annotations

import asyncio
import base64
import dataclasses

import numpy as np
import openai
import pytest

from raysgl.api.backend import QueueFull, Unavailable
from raysgl.config import EngineConfig
from raysgl.messages import Finish

from .conftest import CLS, CONTEXT, EMBED, LABELS, SEP, numbers_of


def ids(text: str) -> list[int]:
    return [CLS, *(4 + ord(c) - ord(" ") for c in text.lower()), SEP]


async def post(server, body, path="/v1/embeddings"):
    async with server.client() as client:
        answer = await client.post(path, json=body)
    return answer.status_code, answer.json()


def test_openai_sdk(pooling_server):
    """The SDK asks for base64 unless it is told otherwise."""
    server = pooling_server(EMBED)
    with server.live() as port, openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0) as client:
        answer = client.embeddings.create(model="embed", input=["Hello", "you"])
        floats = client.embeddings.create(model="embed", input="Hello", encoding_format="float")
    assert [entry.index for entry in answer.data] == [0, 1]
    np.testing.assert_array_equal(np.float32(answer.data[0].embedding), numbers_of(ids("hello"), 0, 4))
    np.testing.assert_array_equal(np.float32(answer.data[1].embedding), numbers_of(ids("you"), 0, 4))
    np.testing.assert_array_equal(np.float32(floats.data[0].embedding), numbers_of(ids("hello"), 0, 4))
    assert answer.usage.prompt_tokens == answer.usage.total_tokens == 7 + 5
    assert answer.model == "embed"


@pytest.mark.parametrize(
    ("given", "computed"),
    [
        ("ab", [ids("ab")]),
        (["ab", "c"], [ids("ab"), ids("c")]),
        ([7, 8], [[7, 8]]),
        ([[7, 8], [9]], [[7, 8], [9]]),
    ],
)
async def test_inputs(pooling_server, given, computed):
    server = pooling_server(EMBED)
    status, answer = await post(server, {"input": given})
    assert status == 200 and len(answer["data"]) == len(computed)
    assert [stream.input_ids for stream in server.backend.streams] == computed


async def test_base64_is_little_endian_float32(pooling_server):
    _, answer = await post(pooling_server(EMBED), {"input": "ab", "encoding_format": "base64"})
    numbers = np.frombuffer(base64.b64decode(answer["data"][0]["embedding"]), "<f4")
    np.testing.assert_array_equal(numbers, numbers_of(ids("ab"), 0, 4))


async def test_special_tokens_can_be_left_out(pooling_server):
    server = pooling_server(EMBED)
    await post(server, {"input": "ab", "add_special_tokens": False})
    assert server.backend.last.input_ids == ids("ab")[1:-1]


async def test_dimensions(pooling_server):
    server = pooling_server(dataclasses.replace(EMBED, dimensions=(2,)))
    _, answer = await post(server, {"input": "ab", "dimensions": 2})
    whole = numbers_of(ids("ab"), 0, 4)
    np.testing.assert_allclose(answer["data"][0]["embedding"], whole[:2] / np.linalg.norm(whole[:2]), rtol=1e-6)
    status, answer = await post(server, {"input": "ab", "dimensions": 3})
    assert status == 400 and answer["error"]["param"] == "dimensions" and "must be 2" in answer["error"]["message"]
    assert (await post(server, {"input": "ab", "dimensions": 4}))[0] == 200
    any_size = pooling_server(dataclasses.replace(EMBED, dimensions=None))
    assert len((await post(any_size, {"input": "ab", "dimensions": 3}))[1]["data"][0]["embedding"]) == 3
    assert "at most 4" in (await post(any_size, {"input": "ab", "dimensions": 5}))[1]["error"]["message"]
    status, answer = await post(pooling_server(EMBED), {"input": "ab", "dimensions": 2})
    assert status == 400 and "must not be cut" in answer["error"]["message"]


async def test_too_long_is_refused_or_cut(pooling_server):
    server = pooling_server(EMBED)
    status, answer = await post(server, {"input": ["ok", "x" * 31]})
    assert status == 400 and answer["error"]["param"] == "input" and "33 tokens" in answer["error"]["message"]
    assert (await post(server, {"input": "x" * 30}))[0] == 200
    for count, length in ((-1, CONTEXT), (10, 10)):
        await post(server, {"input": "y" * 100_000, "truncate_prompt_tokens": count})
        assert server.backend.last.input_ids == [*ids("y" * (length - 2))]
    await post(server, {"input": [5, 6, 7, 8], "truncate_prompt_tokens": 3})
    assert server.backend.last.input_ids == [5, 6, 7]
    for count in (0, 2, 33):
        status, answer = await post(server, {"input": "y", "truncate_prompt_tokens": count})
        assert status == 400 and answer["error"]["param"] == "truncate_prompt_tokens"


async def test_a_setting_cuts_what_is_too_long(pooling_server):
    server = pooling_server(EMBED)
    server.backend.models["embed"].config = EngineConfig(model_path="x", allow_auto_truncate=True)
    for given in ("y" * 100, [5] * 100):
        assert (await post(server, {"input": given}))[0] == 200
    assert [stream.input_ids for stream in server.backend.streams] == [ids("y" * (CONTEXT - 2)), [5] * CONTEXT]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "input"),
        ({"input": []}, "input"),
        ({"input": [[]]}, "input"),
        ({"input": {"text": "a"}}, "input"),
        ({"input": [5, -1]}, "input"),
        ({"input": [5, 1000]}, "input"),
        ({"input": "", "add_special_tokens": False}, "input"),
        ({"input": "a", "encoding_format": "int8"}, "encoding_format"),
        ({"input": "a", "dimensions": 0}, "dimensions"),
        ({"input": "a", "temperature": 1}, "temperature"),
        ({"input": "a", "model": 3}, "model"),
    ],
)
async def test_errors_name_the_field(pooling_server, body, param):
    status, answer = await post(pooling_server(EMBED), body)
    assert (status, answer["error"]["param"]) == (400, param)


async def test_models_of_the_wrong_kind(pooling_server):
    server = pooling_server(EMBED, LABELS, generator=True)
    chat = {"messages": [{"role": "user", "content": "a"}], "max_tokens": 5}
    asked = [
        ("/v1/chat/completions", {"model": "embed", **chat}, "use /v1/embeddings"),
        ("/v1/completions", {"model": "classify", "prompt": "a"}, "use /v1/classify"),
        ("/generate", {"model": "embed", "text": "a"}, "use /v1/embeddings"),
        ("/v1/messages", {"model": "embed", **chat}, "use /v1/embeddings"),
        ("/v1/responses", {"model": "embed", "input": "a"}, "use /v1/embeddings"),
        ("/v1/embeddings", {"model": "tiny", "input": "a"}, "use /v1/chat/completions"),
        ("/v1/embeddings", {"model": "classify", "input": "a"}, "use /v1/classify"),
        ("/encode", {"model": "tiny", "text": "a"}, "use /v1/chat/completions"),
    ]
    for path, body, hint in asked:
        status, answer = await post(server, body, path)
        assert status == 400 and hint in answer["error"]["message"], path
    assert not server.backend.streams


async def test_encode(pooling_server):
    server = pooling_server(EMBED)
    _, answer = await post(server, {"text": "ab", "rid": "mine"}, "/encode")
    np.testing.assert_array_equal(np.float32(answer["embedding"]), numbers_of(ids("ab"), 0, 4))
    assert answer["meta_info"]["id"] == "mine" and answer["meta_info"]["prompt_tokens"] == 4
    _, answers = await post(server, {"input_ids": [[7, 8], [9]]}, "/encode")
    assert [answer["meta_info"]["prompt_tokens"] for answer in answers] == [2, 1]
    assert len((await post(server, {"text": ["a"]}, "/encode"))[1]) == 1
    status, answer = await post(server, {"text": "a", "input_ids": [5]}, "/encode")
    assert (status, answer["error"]["param"]) == (400, "input_ids")


async def test_counts_and_health(pooling_server):
    server = pooling_server(EMBED)
    await post(server, {"input": ["ab", "c"]})
    async with server.client() as client:
        metrics = (await client.get("/metrics")).text
        assert 'sglang:prompt_tokens_total{model_name="embed"} 7.0' in metrics
        assert 'sglang:e2e_request_latency_seconds_count{model_name="embed"} 1.0' in metrics
        assert (await client.get("/health_generate")).status_code == 200
        assert (await client.get("/model_info")).json()["is_generation"] is False


@pytest.mark.parametrize(
    ("error", "finish", "status"),
    [
        (QueueFull("full", 2.0), None, 429),
        (Unavailable("none"), None, 503),
        (None, Finish("error", message="broken", status=500), 500),
        (None, Finish("abort", message="the replica is stopping", status=503), 503),
        (None, Finish("abort", message="the request was aborted"), 400),
    ],
)
async def test_engines_that_refuse(pooling_server, error, finish, status):
    server = pooling_server(EMBED)
    server.backend.error = error
    server.backend.finish = finish or server.backend.finish
    assert (await post(server, {"input": ["a", "b"]}))[0] == status


async def test_a_client_that_goes_away_aborts_its_texts(pooling_server):
    server = pooling_server(EMBED)
    server.backend.hang = True
    with server.live() as port:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        body = b'{"input": ["a", "b"]}'
        writer.write(b"POST /v1/embeddings HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body))
        async with asyncio.timeout(10):
            while len(server.backend.streams) < 2:
                await asyncio.sleep(0.01)
            writer.close()
            while not all(stream.aborted for stream in server.backend.streams):
                await asyncio.sleep(0.01)
