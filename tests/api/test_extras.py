"""Fields of vLLM and SGLang on both kinds of completion: what they do, and what answers have besides."""

from __future__ import annotations

import pytest

from raysgl.messages import Finish

from .fake_backend import Script
from .test_errors import error_of
from .test_shapes import events, post

CHAT = {"messages": [{"role": "user", "content": "hi"}]}
TEXT = {"prompt": "ab"}
CHAT_PATH, TEXT_PATH = "/v1/chat/completions", "/v1/completions"


@pytest.fixture
def abc(server, tokenizer):
    """Answers "a b c" token by token, then the stop token 2."""
    ids = tokenizer.encode("a b c")
    return server(Script([[token] for token in [*ids, 2]], Finish("stop", 2), cached_tokens=1)), [*ids, 2]


async def test_token_ids_of_whole_answers(abc):
    server, ids = abc
    text = (await post(server, TEXT_PATH, TEXT | {"return_token_ids": True})).json()
    prompt = server.backend.last.input_ids
    assert text["choices"][0]["token_ids"] == ids and text["choices"][0]["prompt_token_ids"] == prompt
    chat = (await post(server, CHAT_PATH, CHAT | {"return_token_ids": True})).json()
    assert chat["choices"][0]["token_ids"] == ids and chat["prompt_token_ids"] == server.backend.last.input_ids
    sglang = (await post(server, CHAT_PATH, CHAT | {"return_prompt_token_ids": True})).json()
    assert sglang["choices"][0]["prompt_token_ids"] == server.backend.last.input_ids
    assert "token_ids" not in sglang["choices"][0] and "prompt_token_ids" not in sglang


@pytest.mark.parametrize("stop", [None, "b c"])
@pytest.mark.parametrize(("path", "body"), [(CHAT_PATH, CHAT), (TEXT_PATH, TEXT)])
async def test_token_ids_of_streams(abc, path, body, stop):
    """Each once, also of tokens whose text is held back for a stop string."""
    server, ids = abc
    request = body | {"return_token_ids": True, "stream": True, "n": 2, "stop": stop}
    chunks = events((await post(server, path, request)).text)
    for index in (0, 1):
        mine = [chunk["choices"][0] for chunk in chunks if chunk["choices"][0]["index"] == index]
        expected = ids if stop is None else ids[:-1]
        assert [token for choice in mine for token in choice.get("token_ids", ())] == expected
        assert mine[-1]["finish_reason"] == "stop"
    prompt = server.backend.last.input_ids
    beside = [chunk["prompt_token_ids"] for chunk in chunks if "prompt_token_ids" in chunk]
    inside = [chunk["choices"][0]["prompt_token_ids"] for chunk in chunks if "prompt_token_ids" in chunk["choices"][0]]
    assert (beside or inside) == [prompt, prompt] and not (beside and inside)


@pytest.mark.parametrize(("path", "body"), [(CHAT_PATH, CHAT), (TEXT_PATH, TEXT)])
async def test_prompt_log_probabilities(abc, tokenizer, path, body):
    server, _ = abc
    answer = (await post(server, path, body | {"prompt_logprobs": 1})).json()
    stream = server.backend.last
    found = answer["prompt_logprobs"] if path == CHAT_PATH else answer["choices"][0]["prompt_logprobs"]
    assert stream.sampling.prompt_logprobs == 1 and len(found) == len(stream.input_ids)
    assert found[0] is None
    for token, entry in zip(stream.input_ids[1:], found[1:]):
        mine = entry[str(token)]
        assert set(mine) == {"logprob", "rank", "decoded_token"} and mine["decoded_token"] == tokenizer.token_text(token)


async def test_meta_info_and_cached_tokens_details(abc):
    server, ids = abc
    request = CHAT | {"return_meta_info": True, "return_cached_tokens_details": True, "rid": "r"}
    answer = (await post(server, CHAT_PATH, request)).json()
    info = answer["choices"][0]["meta_info"]
    assert (info["id"], info["finish_reason"]) == ("r", {"type": "stop", "matched": 2})
    assert (info["completion_tokens"], info["cached_tokens"]) == (len(ids), 1)
    assert answer["sglext"] == {"cached_tokens_details": {"device": 1, "host": 0}}
    stream = {"stream": True, "stream_options": {"include_usage": True}, "return_cached_tokens_details": True}
    assert events((await post(server, TEXT_PATH, TEXT | stream)).text)[-1]["sglext"] == answer["sglext"]


async def test_chunks_gather_tokens(abc):
    server, ids = abc
    request = TEXT | {"stream": True, "stream_interval": 3, "return_token_ids": True}
    counts = [len(chunk["choices"][0].get("token_ids", ())) for chunk in events((await post(server, TEXT_PATH, request)).text)]
    assert [count for count in counts if count] == [1, 3, len(ids) - 4]
    native = {"text": "a", "stream": True, "sampling_params": {"stream_interval": 3}}
    sizes = [len(event["output_ids"]) for event in events((await post(server, "/generate", native)).text)]
    assert sizes == [1, 4, len(ids)]


async def test_the_servers_interval(server, tokenizer):
    served = server(Script([[token] for token in tokenizer.encode("a b c")]), stream_interval=100)
    chunks = events((await post(served, TEXT_PATH, TEXT | {"stream": True})).text)
    assert [chunk["choices"][0]["text"] for chunk in chunks] == ["a", " b c", ""]


async def test_what_reaches_the_sampler(abc, tokenizer):
    server, _ = abc
    fields = {"allowed_token_ids": [5, 6, 5], "bad_words": ["fox"], "include_stop_str_in_output": True}
    for path, body in ((CHAT_PATH, CHAT), (TEXT_PATH, TEXT)):
        await post(server, path, body | fields)
        sampling = server.backend.last.sampling
        assert sampling.allowed_token_ids == (5, 6) and sampling.no_stop_trim
        assert {tokenizer.decode(list(word)) for word in sampling.bad_words} == {"fox", " fox"}
    native = {"text": "a", "sampling_params": {"allowed_token_ids": [7], "bad_words": ["fox"]}}
    await post(server, "/generate", native)
    assert server.backend.last.sampling.allowed_token_ids == (7,) and len(server.backend.last.sampling.bad_words) == 2


async def test_prompts_as_they_are_asked_for(abc, tokenizer):
    server, _ = abc
    await post(server, CHAT_PATH, {"input_ids": [4, 5, 6]})
    assert server.backend.last.input_ids == [4, 5, 6]
    await post(server, TEXT_PATH, {"prompt": [4, 5, 6, 7], "truncate_prompt_tokens": 2})
    assert server.backend.last.input_ids == [6, 7]
    await post(server, TEXT_PATH, {"prompt": "x " * 3000, "truncate_prompt_tokens": -1, "max_tokens": 12})
    assert len(server.backend.last.input_ids) == 500
    echoed = await post(server, TEXT_PATH, {"prompt": "one two", "echo": True, "truncate_prompt_tokens": 1, "max_tokens": 0})
    assert echoed.json()["choices"][0]["text"] == tokenizer.decode(tokenizer.encode("one two")[-1:])


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        (CHAT_PATH, {}, "messages"),
        (CHAT_PATH, CHAT | {"input_ids": [1]}, "input_ids"),
        (CHAT_PATH, {"input_ids": [[1]]}, "input_ids"),
        (CHAT_PATH, {"input_ids": [10**7]}, "input_ids"),
        (TEXT_PATH, TEXT | {"truncate_prompt_tokens": 0}, "truncate_prompt_tokens"),
        (TEXT_PATH, TEXT | {"allowed_token_ids": []}, "allowed_token_ids"),
        (TEXT_PATH, TEXT | {"allowed_token_ids": [10**7]}, "allowed_token_ids"),
        (TEXT_PATH, TEXT | {"allowed_token_ids": [2], "min_tokens": 1}, "allowed_token_ids"),
        (TEXT_PATH, TEXT | {"bad_words": [" "]}, "bad_words"),
        (TEXT_PATH, TEXT | {"bad_words": ["\u20ac" * 40]}, "bad_words"),
        (TEXT_PATH, TEXT | {"prompt_logprobs": 99}, "prompt_logprobs"),
        (TEXT_PATH, TEXT | {"prompt_logprobs": 1, "stream": True}, "prompt_logprobs"),
        (CHAT_PATH, CHAT | {"return_meta_info": True, "stream": True}, "return_meta_info"),
        (CHAT_PATH, CHAT | {"return_prompt_token_ids": True, "stream": True}, "return_prompt_token_ids"),
        (TEXT_PATH, TEXT | {"stream_interval": 0}, "stream_interval"),
        (TEXT_PATH, TEXT | {"best_of": 2}, "best_of"),
        (TEXT_PATH, TEXT | {"custom_params": {"a": 1}}, "custom_params"),
        (TEXT_PATH, TEXT | {"lora_path": "a"}, "lora_path"),
        (TEXT_PATH, TEXT | {"session_params": {"id": "a"}}, "session_params"),
    ],
)
async def test_what_is_wrong_is_named(server, path, body, param):
    response = await post(server(), path, body)
    assert response.status_code == 400
    assert error_of(response)["param"] == param
