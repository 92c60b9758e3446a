"""POST /generate against SGLang's bodies."""

from __future__ import annotations

import pytest

from raysgl.messages import Finish

from .fake_backend import Script
from .test_errors import error_of
from .test_shapes import events, post


def volatile(info: dict, finished: bool = True) -> dict:
    """Takes out what differs from run to run."""
    assert info.pop("response_sent_to_client_ts") > 1_700_000_000
    assert (info.pop("e2e_latency", 0) > 0) == finished
    return info


@pytest.fixture
def abc(server, tokenizer):
    """Answers "a b c" token by token, then the stop token 2."""
    ids = tokenizer.encode("a b c")
    return server(Script([[token] for token in [*ids, 2]], Finish("stop", 2), cached_tokens=1)), ids


async def test_one_prompt(abc):
    server, ids = abc
    response = await post(server, "/generate", {"text": "hi", "rid": "r1", "sampling_params": {"temperature": 0}})
    body = response.json()
    volatile(body["meta_info"])
    assert body == {
        "text": "a b c",
        "output_ids": [*ids, 2],
        "meta_info": {
            "id": "r1",
            "finish_reason": {"type": "stop", "matched": 2},
            "prompt_tokens": len(server.backend.last.input_ids),
            "weight_version": "default",
            "num_retractions": 0,
            "completion_tokens": len(ids) + 1,
            "reasoning_tokens": 0,
            "cached_tokens": 1,
        },
    }
    assert response.headers["x-request-id"] == "r1"
    assert server.backend.last.sampling.max_new_tokens == 128
    assert server.backend.last.request_id == "r1"


async def test_put_is_post(abc):
    async with abc[0].client() as client:
        response = await client.put("/generate", json={"input_ids": [5, 6], "return_prompt_token_ids": True})
    assert response.json()["prompt_token_ids"] == [5, 6]


async def test_a_stream_is_cumulative_unless_asked_otherwise(abc):
    server, ids = abc
    request = {"input_ids": [7, 8], "stream": True, "sampling_params": {"max_new_tokens": 2}}
    whole = events((await post(server, "/generate", request)).text)
    assert [event["text"] for event in whole] == ["a", "a "]
    assert [event["output_ids"] for event in whole] == [ids[:1], ids[:2]]
    assert [event["meta_info"]["completion_tokens"] for event in whole] == [1, 2]
    assert [event["meta_info"]["finish_reason"] for event in whole] == [None, {"type": "length", "length": 2}]
    assert "index" not in whole[0] and "e2e_latency" not in whole[0]["meta_info"]
    parts = events((await post(server, "/generate", request | {"incremental_streaming_output": True})).text)
    assert [event["text"] for event in parts] == ["a", " "]
    assert [event["output_ids"] for event in parts] == [[token] for token in ids[:2]]


async def test_the_server_may_stream_increments(server, tokenizer):
    script = Script([[token] for token in tokenizer.encode("a ")])
    served = server(script, incremental_streaming_output=True)
    parts = events((await post(served, "/generate", {"text": "x", "stream": True})).text)
    assert [event["text"] for event in parts] == ["a", " "]


async def test_a_batch(server, tokenizer):
    served = server(lambda ids, sampling, index: Script([[ids[0]]]))
    request = {
        "input_ids": [[10], [11], [12]],
        "rid": ["x", "y", "z"],
        "sampling_params": [{"n": 2, "max_new_tokens": 4}, {"n": 2}, {"n": 2, "temperature": 0.5}],
        "extra_key": ["p", "q", "r"],
    }
    answers = (await post(served, "/generate", request)).json()
    assert [answer["output_ids"] for answer in answers] == [[10], [10], [11], [11], [12], [12]]
    assert [answer["meta_info"]["id"] for answer in answers] == ["x", "x", "y", "y", "z", "z"]
    assert [stream.sampling.max_new_tokens for stream in served.backend.streams] == [4, 128, 128]
    assert [stream.settings["extra_key"] for stream in served.backend.streams] == ["p", "q", "r"]
    chunks = events((await post(served, "/generate", {"text": ["a", "b"], "rid": "g", "stream": True})).text)
    assert sorted((chunk["index"], chunk["meta_info"]["id"]) for chunk in chunks) == [(0, "g_0"), (1, "g_1")]


async def test_a_list_of_one_is_a_batch_and_n_makes_a_list(server):
    served = server(Script([[10]]))
    assert isinstance((await post(served, "/generate", {"text": ["a"]})).json(), list)
    assert len((await post(served, "/generate", {"text": "a", "sampling_params": {"n": 3}})).json()) == 3


async def test_log_probabilities(abc, tokenizer):
    server, ids = abc
    request = {
        "input_ids": [5, 6, 7],
        "return_logprob": True,
        "logprob_start_len": 0,
        "top_logprobs_num": 1,
        "token_ids_logprob": [9],
        "return_text_in_logprobs": True,
    }
    info = (await post(server, "/generate", request)).json()["meta_info"]
    sampling = server.backend.last.sampling
    assert (sampling.prompt_logprobs, sampling.prompt_logprobs_start, sampling.token_ids_logprob) == (1, 0, (9,))
    assert info["input_token_logprobs"][0] == [None, 5, tokenizer.token_text(5)]
    assert [entry[1] for entry in info["input_token_logprobs"]] == [5, 6, 7]
    assert [entry[1:] for entry in info["output_token_logprobs"]] == [[t, tokenizer.token_text(t)] for t in [*ids, 2]]
    assert info["output_token_logprobs_length"] == len(ids) + 1
    assert info["input_top_logprobs"][0] is None and len(info["input_top_logprobs"][1]) == 1
    assert len(info["output_top_logprobs"]) == len(info["output_token_ids_logprobs"]) == len(ids) + 1
    plain = (await post(server, "/generate", {"text": "x", "return_logprob": True})).json()["meta_info"]
    assert plain["input_token_logprobs"] == [] and plain["output_token_logprobs"][0][2] is None
    assert "output_top_logprobs" not in plain and "output_token_ids_logprobs" not in plain


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "text"),
        ({"text": "a", "input_ids": [1]}, "input_ids"),
        ({"text": ""}, "text"),
        ({"text": []}, "text"),
        ({"input_ids": [10**7]}, "input_ids"),
        ({"input_ids": ["a"]}, "input_ids"),
        ({"text": "a", "rid": ["x"]}, "rid"),
        ({"text": ["a", "b"], "rid": ["x", "x"]}, "rid"),
        ({"text": ["a", "b"], "rid": ["x"]}, "rid"),
        ({"text": ["a", "b"], "sampling_params": [{}]}, "sampling_params"),
        ({"text": ["a", "b"], "sampling_params": [{"n": 1}, {"n": 2}]}, "sampling_params.n"),
        ({"text": "a", "sampling_params": {"temperature": -1}}, "sampling_params.temperature"),
        ({"text": "a", "sampling_params": {"max_new_tokens": 10**6}}, "sampling_params.max_new_tokens"),
        ({"text": "a", "sampling_params": {"nonsense": 1}}, "sampling_params.nonsense"),
        ({"text": "a", "sampling_params": {"sampling_seed": 2**64}}, "sampling_params.sampling_seed"),
        ({"text": "a", "sampling_params": {"custom_params": {"a": 1}}}, "sampling_params.custom_params"),
        ({"text": "a", "lora_path": "x"}, "lora_path"),
        ({"text": "a", "session_params": {"id": "x"}}, "session_params"),
        ({"text": "a", "custom_logit_processor": "x"}, "custom_logit_processor"),
        ({"text": "a", "image_data": "x"}, "image_data"),
        ({"text": "a", "top_logprobs_num": 2}, "top_logprobs_num"),
        ({"text": "a", "logprob_start_len": 0}, "logprob_start_len"),
        ({"text": "a", "return_logprob": True, "logprob_start_len": 99}, "logprob_start_len"),
        ({"text": "a", "return_logprob": True, "logprob_start_len": -2}, "logprob_start_len"),
        ({"text": "a", "return_logprob": True, "top_logprobs_num": 99}, "top_logprobs_num"),
        ({"text": "a", "return_logprob": True, "token_ids_logprob": [10**7]}, "token_ids_logprob"),
        ({"text": "a", "nonsense": 1}, "nonsense"),
    ],
)
async def test_what_is_wrong_is_named(server, body, param):
    response = await post(server(), "/generate", body)
    assert response.status_code == 400
    assert error_of(response)["param"] == param


async def test_errors_in_a_stream(server):
    served = server(Script([[10], [11]], Finish("error", message="boom", status=500), delay=0.01))
    text = (await post(served, "/generate", {"text": "a", "stream": True})).text
    assert text.endswith('"code":500,"retryable":false}}\n\ndata: [DONE]\n\n')
    early = server(Script([], Finish("abort", message="the queue is full", status=503)))
    response = await post(early, "/generate", {"text": "a", "stream": True})
    assert response.status_code == 503 and "queue" in error_of(response)["message"]


async def test_an_abort_is_an_answer(server):
    served = server(Script([[10]], Finish("abort", message="the request was aborted")))
    info = (await post(served, "/generate", {"text": "a"})).json()["meta_info"]
    assert info["finish_reason"]["type"] == "abort" and info["finish_reason"]["message"] == "the request was aborted"


async def test_every_answer_has_the_requests_id(server):
    served = server()
    async with served.client() as client:
        for path in ("/health", "/v1/models", "/nothing", "/metrics", "/docs"):
            assert (await client.get(path, headers={"X-Request-Id": "mine"})).headers["x-request-id"] == "mine"
            assert len((await client.get(path)).headers["x-request-id"]) == 32
        wrong = await client.post("/generate", json={}, headers={"X-Request-Id": "mine"})
        assert wrong.headers["x-request-id"] == "mine"
