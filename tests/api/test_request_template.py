"""A template that comes with a request: refused by default; where it is trusted, it can neither stall nor fill the server."""

from __future__ import annotations

import asyncio
import os

import pytest

from raysgl.api import request_template
from raysgl.api.chat_template import TemplateError
from raysgl.api.request_template import MAX_SOURCE_CHARS, render_untrusted

CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}]}
SHOUT = "{% for m in messages %}{{ m.content | upper }}{{ suffix }}{% endfor %}"
ENDLESS = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"


async def render(source: str) -> str:
    return await render_untrusted(source, {"bos_token": "<s>"}, CHAT["messages"], {})


async def test_refused_unless_trusted(server):
    async with server().client() as client:
        refused = await client.post("/v1/chat/completions", json=CHAT | {"chat_template": SHOUT})
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "chat_template")
        assert (await client.post("/v1/chat/completions", json=CHAT | {"chat_template": None})).status_code == 200


async def test_used_where_trusted(server, tokenizer):
    made = server(trust_request_chat_template=True)
    async with made.client() as client:
        body = CHAT | {"chat_template": SHOUT, "chat_template_kwargs": {"suffix": "!"}, "documents": [{"a": 1}]}
        assert (await client.post("/v1/chat/completions", json=body)).status_code == 200
        assert tokenizer.decode(made.backend.last.input_ids) == "HI!"
        tokens = (await client.post("/tokenize", json=CHAT | {"chat_template": SHOUT})).json()["tokens"]
        assert tokenizer.decode(tokens) == "HI"
        wrong = await client.post("/v1/chat/completions", json=CHAT | {"chat_template": "{% if %}"})
        assert (wrong.status_code, wrong.json()["error"]["param"]) == (400, "chat_template")
        assert "line 1" in wrong.json()["error"]["message"]


async def test_others_go_on_while_a_template_loops(server, monkeypatch):
    made = server(trust_request_chat_template=True)
    async with made.client() as client:
        looping = asyncio.create_task(client.post("/v1/chat/completions", json=CHAT | {"chat_template": ENDLESS}))
        answered = 0
        while not looping.done():
            assert (await client.post("/v1/chat/completions", json=CHAT)).status_code == 200
            answered += 1
        assert answered > 5
        assert looping.result().status_code == 400
        assert "took longer" in looping.result().json()["error"]["message"]


@pytest.mark.parametrize(
    ("source", "complaint"),
    [
        ("{{ 'a' * 10**10 }}", "memory|MemoryError|longer|says"),
        ("{{ 9 ** (9 ** 9) }}", "memory|longer|says"),
        ("{{ 'a' * 9000000 }}", "longer than"),
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "unsafe"),
        ("x" * (MAX_SOURCE_CHARS + 1), "longer than"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "nested"),
    ],
)
async def test_hostile_templates_end(source, complaint, monkeypatch):
    monkeypatch.setattr(request_template, "LIMIT_S", 2.0)
    with pytest.raises(TemplateError, match=complaint):
        await render(source)


async def test_the_process_sees_no_environment(monkeypatch):
    monkeypatch.setitem(os.environ, "SECRET_KEY", "1234")
    spawned = []
    original = asyncio.create_subprocess_exec

    async def spy(*command, env, **kwargs):
        spawned.append(env)
        return await original(*command, env=env, **kwargs)

    monkeypatch.setattr(asyncio, "create_subprocess_exec", spy)
    assert await render("{{ bos_token }}{{ messages[0].content }}") == "<s>hi"
    assert [list(env) for env in spawned] == [["PYTHONPATH"]]


async def test_a_client_that_goes_away_ends_the_process():
    task = asyncio.create_task(render(ENDLESS))
    await asyncio.sleep(0.5)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await render("{{ messages[0].content }}") == "hi"
