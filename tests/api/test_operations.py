"""Health, metrics, tokens, the cache, the description; and what the API must not import."""

from __future__ import annotations

import subprocess
import sys

from raysgl.messages import Finish

from .fake_backend import Script
from .test_shapes import post


def test_the_app_imports_neither_torch_nor_transformers_nor_ray():
    code = (
        "import sys, raysgl.api.app; sys.exit(', '.join(m for m in ('torch', 'transformers', 'ray') if m in sys.modules) or 0)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


async def test_health_and_ready(server):
    fake = server()
    async with fake.client() as client:
        assert (await client.get("/health")).status_code == 200
        assert (await client.get("/ready")).status_code == 200
        fake.backend.is_ready = False
        assert (await client.get("/ready")).status_code == 503
        assert (await client.get("/health")).status_code == 200
        assert (await client.get("/")).json()["models"] == ["tiny"]


async def test_metrics(server, tokenizer):
    fake = server(Script([tokenizer.encode("abc"), tokenizer.encode("d"), [2]], Finish("stop", 2), cached_tokens=1))
    async with fake.client() as client:
        await client.post("/v1/completions", json={"prompt": "xyz", "n": 2})
        await client.post("/v1/completions", json={"prompt": "xyz", "stream": True, "max_tokens": 2})
        text = (await client.get("/metrics")).text
    lines = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    model = 'model_name="tiny"'
    assert lines[f"sglang:prompt_tokens_total{{{model}}}"] == "6.0"
    assert lines[f"sglang:generation_tokens_total{{{model}}}"] == "12.0"
    assert lines[f"sglang:cached_tokens_total{{{model}}}"] == "2.0"
    assert lines[f"sglang:num_requests_total{{{model}}}"] == "2.0"
    assert lines[f"sglang:num_aborted_requests_total{{{model}}}"] == "0.0"
    assert lines[f"sglang:time_to_first_token_seconds_count{{{model}}}"] == "3.0"
    assert lines[f"sglang:inter_token_latency_seconds_count{{{model}}}"] == "4.0"
    assert lines[f"sglang:e2e_request_latency_seconds_count{{{model}}}"] == "2.0"
    assert f'sglang:time_to_first_token_seconds_bucket{{le="0.005",{model}}}' in lines
    engine = f'{{{model},replica="replica-0"}}'
    expected = {
        "num_running_reqs": 3,
        "num_queue_reqs": 2,
        "num_used_tokens": 20 * 16,
        "token_usage": 0.2,
        "cache_hit_rate": 0.25,
        "max_total_num_tokens": 1600,
    }
    assert {name: float(lines[f"sglang:{name}{engine}"]) for name in expected} == expected


async def test_tokenize_and_detokenize(server, tokenizer):
    fake = server()
    ids = tokenizer.encode("héllo")
    one = (await post(fake, "/tokenize", {"prompt": "héllo"})).json()
    assert one == {"tokens": ids, "count": len(ids), "max_model_len": 512}
    two = (await post(fake, "/v1/tokenize", {"model": "tiny", "prompt": ["héllo", ""]})).json()
    assert two == {"tokens": [ids, []], "count": [len(ids), 0], "max_model_len": 512}
    chat = (await post(fake, "/tokenize", {"messages": [{"role": "user", "content": "hi"}]})).json()
    assert tokenizer.decode(chat["tokens"], False) == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    assert (await post(fake, "/detokenize", {"tokens": ids})).json() == {"text": "héllo"}
    assert (await post(fake, "/v1/detokenize", {"tokens": [ids, [1, *ids]]})).json() == {"text": ["héllo", "héllo"]}
    shown = await post(fake, "/detokenize", {"tokens": [1, *ids], "skip_special_tokens": False})
    assert shown.json() == {"text": "<|im_start|>héllo"}
    assert (await post(fake, "/detokenize", {"tokens": [10**6]})).status_code == 400
    assert (await post(fake, "/detokenize", {"tokens": []})).json() == {"text": ""}


async def test_flush_cache(server):
    fake = server()
    async with fake.client() as client:
        assert (await client.get("/flush_cache")).status_code == 200
        assert (await client.post("/flush_cache?timeout=2.5&model=tiny")).text == "Cache flushed."
        assert (await client.post("/reset_prefix_cache")).status_code == 200
        assert fake.backend.flushed == [(None, 0.0), ("tiny", 2.5), (None, 0.0)]
        assert (await client.post("/flush_cache?model=x")).status_code == 404
        for query in ("timeout=x", "timeout=-1", "timeout=nan", "force=1"):
            assert (await client.post(f"/flush_cache?{query}")).status_code == 400
        fake.backend.is_ready = False
        busy = await client.post("/flush_cache")
        assert (busy.status_code, busy.text) == (400, "2 requests are running")


async def test_the_description_has_requests_and_answers(server):
    async with server().client() as client:
        schema = (await client.get("/openapi.json")).json()
    body = schema["paths"]["/v1/chat/completions"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert body == {"$ref": "#/components/schemas/ChatCompletionRequest"}
    schemas = schema["components"]["schemas"]
    assert schemas["ChatCompletionRequest"]["properties"]["messages"]["items"] == {"$ref": "#/components/schemas/ChatMessage"}
    assert {"ChatCompletion", "Completion", "TextPart", "ErrorResponse"} <= set(schemas)


async def test_what_reaches_the_backend(server, model):
    """Names, defaults and limits of sampling parameters."""
    model.defaults = {"temperature": 0.6, "top_p": 0.9, "top_k": 40}
    fake = server()
    body = {
        "messages": [{"role": "user", "content": "hi"}],
        "top_p": 0.5,
        "min_tokens": 2,
        "logit_bias": {"7": -1},
        "stop": "x",
        "stop_token_ids": [3],
        "ignore_eos": True,
        "seed": 5,
        "priority": 3,
        "extra_key": "k",
        "cache_salt": "s",
        "prompt_cache_key": "session",
    }
    assert (await post(fake, "/v1/chat/completions", body)).status_code == 200
    sampling, settings = fake.backend.last.sampling, fake.backend.last.settings
    assert (sampling.temperature, sampling.top_p, sampling.top_k) == (0.6, 0.5, 40)
    assert (sampling.min_new_tokens, sampling.logit_bias, sampling.stop, sampling.stop_token_ids) == (2, {7: -1}, ("x",), (3,))
    assert (sampling.ignore_eos, sampling.seed) == (True, 5)
    assert sampling.max_new_tokens == 512 - 18
    assert settings == {"extra_key": "k|s", "priority": 3, "session": "session", "timeout_s": None}
    await post(fake, "/v1/completions", {"prompt": "x"})
    assert fake.backend.last.sampling.max_new_tokens == 16
    assert fake.backend.last.sampling.seed is not None
    await post(fake, "/v1/completions", {"prompt": [5] * 505})
    assert fake.backend.last.sampling.max_new_tokens == 7
    model.defaults["max_new_tokens"] = 30
    await post(fake, "/v1/chat/completions", {"messages": body["messages"]})
    assert fake.backend.last.sampling.max_new_tokens == 30
