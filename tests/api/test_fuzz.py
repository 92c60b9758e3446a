"""Whatever the body is, the answer is never a 500, and a 4xx has the error shape."""

from __future__ import annotations

import asyncio

import httpx
import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from raysgl.api import protocol
from raysgl.api.chat_template import ChatTemplate
from raysgl.api.served_model import ServedModel
from raysgl.api.unsupported import ASKS_FOR_NOTHING

from .conftest import CHATML, Server
from .fake_backend import FakeBackend, Script

scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**64 - 1),
    st.sampled_from([0, 1, 2, -1, 20, 0.5, 1e308]),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=5),
    st.sampled_from(["user", "assistant", "system", "text", "hi", "{{ x }}", "none"]),
)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3), max_leaves=6
)
texts = st.text(max_size=10)
parts = st.fixed_dictionaries({"type": st.sampled_from(["text", "image_url"])}, optional={"text": texts, "image_url": values})
messages = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["user", "assistant", "system", "tool", "developer"])},
        optional={"content": texts | st.lists(parts, max_size=2) | values, "tool_calls": values, "name": values},
    ),
    max_size=3,
)
prompts = texts | st.lists(texts, max_size=2) | st.lists(st.integers(-2, 420), max_size=4) | values
SENSIBLE = {
    "messages": messages,
    "prompt": prompts,
    "n": st.integers(-1, 3),
    "max_tokens": st.integers(-1, 600) | st.none(),
    "stop": st.lists(texts, max_size=2) | texts,
    "logprobs": st.booleans() | st.integers(-1, 3),
    "stream": st.booleans(),
    "stream_options": st.fixed_dictionaries({}, optional={"include_usage": st.booleans(), "continuous_usage_stats": values}),
    "tokens": st.lists(st.integers(-1, 420), max_size=4),
    "chat_template_kwargs": st.dictionaries(st.sampled_from(["a", "self", "messages", "caller", "loop"]), values, max_size=2),
}


def bodies(kind: type[protocol.Request], required: str) -> st.SearchStrategy:
    names = [name for name in (*kind.model_fields, "regex", "tools", "unknown") if name != required]
    field = st.sampled_from(names).flatmap(
        lambda name: st.tuples(st.just(name), st.one_of(SENSIBLE[name], values) if name in SENSIBLE else values)
    )
    extra = st.lists(field, max_size=4).map(dict)
    return st.tuples(extra, st.one_of(SENSIBLE[required], SENSIBLE[required], values)).map(
        lambda both: both[0] | {required: both[1]}
    )


CASES = {
    "/v1/chat/completions": (protocol.ChatCompletionRequest, "messages"),
    "/v1/completions": (protocol.CompletionRequest, "prompt"),
    "/tokenize": (protocol.TokenizeRequest, "prompt"),
    "/v1/tokenize": (protocol.TokenizeChatRequest, "messages"),
    "/detokenize": (protocol.DetokenizeRequest, "tokens"),
    "/abort_request": (protocol.AbortRequest, "rid"),
}
SENSIBLE["rid"] = texts


@pytest.mark.parametrize("path", CASES)
@settings(max_examples=150, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_no_body_gives_a_500(server_once, path, data):
    body = data.draw(bodies(*CASES[path]))
    response = call(server_once, path, orjson.dumps(body))
    assert response.status_code in (200, 400, 404), response.text
    if response.status_code != 200:
        error = orjson.loads(response.content)["error"]
        assert error["message"]
        assert error["code"]
    elif body.get("stream"):
        assert b'"error"' not in response.content


@given(st.binary(max_size=30))
def test_no_bytes_give_a_500(server_once, content):
    assert call(server_once, "/v1/chat/completions", content).status_code == 400


def call(server: Server, path: str, content: bytes) -> httpx.Response:
    async def post() -> httpx.Response:
        async with server.client() as client:
            return await client.post(path, content=content)

    return asyncio.run(post())


@pytest.fixture(scope="module")
def server_once(tokenizer) -> Server:
    """One for all examples: making the app is what would take the time."""
    model = ServedModel("tiny", "/models/tiny", tokenizer, ChatTemplate(CHATML), 512, tokenizer.vocab_size, (2,))
    return Server(FakeBackend(model, lambda *_: Script([[5]])))


@pytest.mark.parametrize("name", ASKS_FOR_NOTHING)
def test_what_is_not_supported_is_no_field(name):
    """Of some kind of request at least: else its refusal would never be reached."""
    taken = [kind for kind, _ in CASES.values() if name in kind.model_fields]
    assert taken == ([protocol.ChatCompletionRequest] if name == "max_thinking_tokens" else [])
