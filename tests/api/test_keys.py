"""Who may call what: every row of the table of endpoints with every kind of key, the key file, and what keys may use."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import os
import re
import threading

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raysgl.actors.http import bridge
from raysgl.api import keys as keys_module
from raysgl.api.endpoints import ENDPOINTS, Endpoint
from raysgl.api.keys import Access, Key, KeyRing, read_key_file
from raysgl.api.limits import Limits, duration
from raysgl.config import ServerConfig
from raysgl.messages import Finish

from .fake_backend import Script

CALLS = [(row, method) for row in ENDPOINTS for method in row.methods]
IDS = [f"{method} {row.path}" for row, method in CALLS]
WRONG = ({}, {"authorization": "Bearer nope"}, {"authorization": "Basic user-key"}, {"x-api-key": "user-kez"})


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


async def call(fake, row: Endpoint, method: str, headers: dict[str, str]):
    """An empty body, so that whoever is let in is told what is wrong with it, where a body is wanted."""
    path = re.sub(r"{\w+(:path)?}", "tiny", row.path)
    async with fake.client() as client:
        return await client.request(method, path, headers=headers, json=None if method == "GET" else {})


def let_in(response) -> bool:
    if response.status_code in (401, 403):
        check_error(response)
        return False
    assert response.status_code < 500 or response.status_code == 503
    return True


def check_error(response) -> None:
    error = response.json()["error"]
    assert error["type"]
    assert "key" in error["message"]
    assert not re.search("nope|user-ke|admin-ke", response.text)
    if response.status_code == 401:
        assert response.headers["www-authenticate"] == "Bearer"
    assert response.headers["x-request-id"]


@pytest.mark.parametrize(("row", "method"), CALLS, ids=IDS)
async def test_both_keys(server, row, method):
    fake = server(api_key="user-key", admin_api_key="admin-key")
    for headers in WRONG:
        response = await call(fake, row, method, headers)
        assert let_in(response) == (row.access is Access.OPEN)
        assert row.access is Access.OPEN or response.status_code == 401
    user = await call(fake, row, method, bearer("user-key"))
    assert let_in(user) == (row.access in (Access.OPEN, Access.KEY))
    assert let_in(await call(fake, row, method, bearer("admin-key")))
    assert let_in(await call(fake, row, method, {"x-api-key": "admin-key"}))


@pytest.mark.parametrize(("row", "method"), CALLS, ids=IDS)
async def test_no_admin_key(server, row, method):
    fake = server(api_key="user-key")
    assert let_in(await call(fake, row, method, {})) == (row.access is Access.OPEN)
    assert let_in(await call(fake, row, method, bearer("user-key"))) == (row.access is not Access.ADMIN)


@pytest.mark.parametrize(("row", "method"), CALLS, ids=IDS)
async def test_no_keys_at_all(server, row, method):
    fake = server()
    for headers in ({}, bearer("whatever")):
        assert let_in(await call(fake, row, method, headers))


def test_the_table_has_every_route(server):
    app = server().app
    assert {(route.path, *sorted(route.methods)) for route in app.routes} == {(row.path, method) for row, method in CALLS}


def test_what_is_open_is_only_this():
    opened = {row.path for row in ENDPOINTS if row.access is Access.OPEN}
    assert opened <= {"/", "/docs", "/openapi.json", "/health", "/health_generate", "/ready", "/metrics", "/ping"}


async def test_the_banner_tells_strangers_no_models(server):
    async with server(api_key="user-key").client() as client:
        assert "models" not in (await client.get("/")).json()


async def test_anthropics_errors_have_its_shape(server):
    async with server(api_key="user-key").client() as client:
        response = await client.post("/v1/messages", json={})
    assert response.status_code == 401
    assert response.json()["type"] == "error"
    assert response.json()["error"]["type"] == "authentication_error"


# ------------------------------------------------------------------ the file


def write(path, *entries: dict, stamp: int = 0) -> str:
    path.write_text(json.dumps({"keys": list(entries)}))
    os.utime(path, ns=(stamp, stamp))
    return str(path)


def ring(path) -> KeyRing:
    return KeyRing(ServerConfig(api_key_file=str(path)))


def find(ring: KeyRing, key: str) -> Key | None:
    try:
        return ring.authorize(Access.KEY, {"authorization": f"Bearer {key}"})
    except keys_module.ApiError as error:
        assert error.status == 401
        return None


def test_a_key_file(tmp_path):
    path = tmp_path / "keys.yaml"
    digest = hashlib.sha256(b"secret-b").hexdigest()
    path.write_text(f"""
keys:
  - name: alice
    key: secret-a
    requests_per_minute: 3
    tokens_per_minute: 100
    max_concurrent: 2
    models: [tiny]
  - {{name: bob, sha256: {digest}, admin: true}}
  - {{name: zoë, key: sécret}}
""")
    mine = ring(path)
    assert find(mine, "secret-a") == Key("alice", False, 3, 100, 2, frozenset({"tiny"}))
    assert find(mine, "secret-b") == Key("bob", admin=True)
    assert find(mine, "sécret".encode().decode("latin-1")).name == "zoë"
    assert find(mine, digest) is None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "neither YAML nor JSON"),
        ("[]", "must be"),
        ("keys: [{name: a, key: hush, sha256: hush}]", "sha256"),
        ("keys: [{name: a}]", "needs either key or sha256"),
        ("keys: [{name: a, key: 123456}]", "keys.0.key: must be a string"),
        ("keys: [{name: a, key: hush, rpm: 5}]", "keys.0.rpm: unknown setting"),
        ("keys: [{name: a, key: hush, max_concurrent: 0}]", "keys.0.max_concurrent"),
        ("keys: [{name: a, key: hush}, {name: a, key: hush2}]", "same name"),
        ("keys: [{name: a, key: hush}, {name: b, key: hush}]", "same key"),
        ("keys: [{name: 'a b\\n', key: hush}]", "keys.0.name"),
    ],
)
def test_a_bad_key_file_is_explained_without_its_keys(tmp_path, text, said):
    path = tmp_path / "keys.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=re.escape(str(path))) as error:
        read_key_file(str(path))
    assert said in str(error.value)
    assert not re.search("hush|123456", str(error.value))


def test_the_file_is_read_again(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(keys_module, "LOOK_S", 0.0)
    path = tmp_path / "keys.json"
    write(path, {"name": "a", "key": "key-a"}, stamp=1)
    mine = ring(path)
    assert find(mine, "key-a")
    write(path, {"name": "b", "key": "key-b"}, stamp=2)
    assert find(mine, "key-a") is None
    assert find(mine, "key-b").name == "b"
    path.write_text('{"keys": [{"name": "c", "key": "key-c"')
    with caplog.at_level(logging.INFO):
        assert find(mine, "key-b")
        path.unlink()
        assert find(mine, "key-b")
        assert find(mine, "key-b")
    assert len([record for record in caplog.records if record.levelname == "ERROR"]) == 2
    assert "key-" not in caplog.text
    write(path, {"name": "c", "key": "key-c"}, stamp=3)
    assert find(mine, "key-b") is None
    assert find(mine, "key-c")


def test_a_file_that_cannot_be_read_at_the_start_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        ring(tmp_path / "none.yaml")


async def test_an_empty_file_lets_nobody_in(server, tmp_path):
    async with server(api_key_file=write(tmp_path / "keys.json")).client() as client:
        assert (await client.get("/v1/models")).status_code == 401


def test_settings_do_not_show_keys():
    settings = ServerConfig(api_key="hush-a", admin_api_key="hush-b")
    for shown in (repr(settings), str(settings.model_dump()), settings.model_dump_json()):
        assert "hush" not in shown


# ------------------------------------------------------------------ limits


async def test_models_of_a_key(server, tmp_path, model):
    path = write(tmp_path / "keys.json", {"name": "a", "key": "a", "models": ["tiny"]}, {"name": "b", "key": "b", "models": []})
    fake = server(api_key_file=path)
    fake.backend.models["other"] = model
    async with fake.client() as client:
        listed = (await client.get("/v1/models", headers=bearer("a"))).json()["data"]
        assert [card["id"] for card in listed] == ["tiny"]
        assert (await client.get("/v1/models/other", headers=bearer("a"))).status_code == 403
        body = {"prompt": "x"}
        assert (await client.post("/v1/completions", json=body, headers=bearer("a"))).status_code == 200
        refused = await client.post("/v1/completions", json=body | {"model": "other"}, headers=bearer("a"))
        assert refused.status_code == 403
        assert refused.json()["error"]["code"] == "model_not_allowed"
        assert (await client.post("/v1/completions", json=body | {"model": "tiny"}, headers=bearer("b"))).status_code == 403


async def test_requests_per_minute(server, tmp_path):
    path = write(tmp_path / "keys.json", {"name": "a", "key": "a", "requests_per_minute": 2}, {"name": "b", "key": "b"})
    async with server(api_key_file=path).client() as client:
        first = await client.post("/v1/completions", json={"prompt": "x"}, headers=bearer("a"))
        assert first.headers["x-ratelimit-limit-requests"] == "2"
        assert first.headers["x-ratelimit-remaining-requests"] == "1"
        assert re.fullmatch(r"[\d.]+s", first.headers["x-ratelimit-reset-requests"])
        assert "x-ratelimit-limit-tokens" not in first.headers
        await client.post("/v1/completions", json={"prompt": "x"}, headers=bearer("a"))
        third = await client.post("/v1/completions", json={"prompt": "x"}, headers=bearer("a"))
        assert third.status_code == 429
        assert third.headers["x-ratelimit-remaining-requests"] == "0"
        assert 1 <= int(third.headers["retry-after"]) <= 30
        assert third.json()["error"]["code"] == "rate_limit_exceeded"
        assert (await client.get("/v1/models", headers=bearer("a"))).status_code == 200
        assert (await client.post("/v1/completions", json={"prompt": "x"}, headers=bearer("b"))).status_code == 200


async def test_tokens_per_minute(server, tmp_path):
    path = write(tmp_path / "keys.json", {"name": "a", "key": "a", "tokens_per_minute": 20})
    fake = server(Script([[5]] * 16), api_key_file=path)
    async with fake.client() as client:

        async def post(ids: int):
            return await client.post("/v1/completions", json={"prompt": [7] * ids}, headers=bearer("a"))

        whole = await post(21)
        assert (whole.status_code, whole.headers.get("retry-after")) == (429, None)
        assert not fake.backend.streams
        first = await post(10)
        assert first.status_code == 200
        assert first.headers["x-ratelimit-remaining-tokens"] == "10"  # before the answer is counted: 16, which leads into debt
        then = await post(1)
        assert then.status_code == 429
        assert 1 <= int(then.headers["retry-after"]) <= 30


async def test_requests_at_a_time(server, tmp_path):
    path = write(tmp_path / "keys.json", {"name": "a", "key": "a", "max_concurrent": 1})
    fake = server(Script([[5]], hang=True), api_key_file=path)
    body = {"prompt": "x", "stream": True}
    with fake.live() as port:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
            async with client.stream("POST", "/v1/completions", json=body, headers=bearer("a")) as first:
                assert first.status_code == 200
                second = await client.post("/v1/completions", json=body, headers=bearer("a"))
                assert second.status_code == 429
            fake.backend.script = lambda *_: Script([[5]], Finish("length"))
            for _ in range(100):
                third = await client.post("/v1/completions", json=body, headers=bearer("a"))
                if third.status_code == 200:
                    break
            assert third.status_code == 200


def test_buckets_fill_and_ingresses_share():
    now = 0.0
    limits = Limits(2, lambda: now)
    key = Key("a", requests_per_minute=60, tokens_per_minute=1200, max_concurrent=4)
    mine = limits.of(key)
    for _ in range(30):
        with mine.enter():
            pass
    with pytest.raises(keys_module.ApiError) as error, mine.enter():
        pass
    assert error.value.retry_after == 2.0
    now = 2.0
    with mine.enter():
        assert mine.open == 1
    assert mine.open == 0


def test_a_prompt_within_the_limit_but_beyond_the_share_waits_for_the_whole_share():
    now = 0.0
    mine = Limits(2, lambda: now).of(Key("a", tokens_per_minute=1200))
    mine.spend_prompt(1000)
    for tokens, wait in ((1000, 60 * 1000 / 600), (1201, None)):
        with pytest.raises(keys_module.ApiError, match=r"1200 tokens a minute \(600 through each ingress\)") as error:
            mine.spend_prompt(tokens)
        assert error.value.retry_after == wait
    now = 100.0
    mine.spend_prompt(1000)


@given(
    limit=st.integers(1, 50),
    steps=st.lists(st.tuples(st.floats(0, 20), st.integers(0, 30)), max_size=40),
)
def test_never_more_than_a_minutes_worth_and_what_came_back(limit, steps):
    now = 0.0
    allowance = Limits(1, lambda: now).of(Key("a", requests_per_minute=limit))
    granted = 0
    for pause, requests in steps:
        now += pause
        for _ in range(requests):
            try:
                with allowance.enter():
                    granted += 1
            except keys_module.ApiError as error:
                assert 0 < error.retry_after <= 60 / limit + 1e-6
        assert granted <= limit * (1 + now / 60) + 1e-6


async def test_keys_hold_behind_serves_proxy_too(server):
    """Requests that come that way run in another event loop than the one that asks."""
    fake = server(api_key="user-key")
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        transport = httpx.ASGITransport(bridge(fake.app, loop))
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            refused = await client.post("/v1/completions", json={"prompt": "x"})
            answer = await client.post("/v1/completions", json={"prompt": "x"}, headers=bearer("user-key"))
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
    assert (refused.status_code, answer.status_code) == (401, 200)
    assert refused.headers["x-request-id"] != answer.headers["x-request-id"]


def test_other_limits_keep_what_was_used():
    limits = Limits(1, lambda: 0.0)
    with limits.of(Key("a", requests_per_minute=10)).enter():
        pass
    assert dict(limits.of(Key("a", requests_per_minute=5)).headers())[b"x-ratelimit-remaining-requests"] == b"4"
    assert limits.of(Key("a")).headers() == []


@pytest.mark.parametrize(("seconds", "text"), [(0, "0ms"), (0.12, "120ms"), (7.66, "7.66s"), (20.0, "20s"), (360, "6m0s")])
def test_durations_are_openais(seconds, text):
    assert duration(seconds) == text
