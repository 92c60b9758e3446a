"""The request log: what each level says, that it says no key and no text too much, and that it changes live."""

from __future__ import annotations

import json
import logging

import pytest

from raysgl import logs
from raysgl.config import ServerConfig
from raysgl.logs import FIELDS, JsonFormatter, log_settings, set_logs
from raysgl.messages import LogSettings

NAME = "raysgl.api.request_log"
PROMPT = "the secret plan"


@pytest.fixture(autouse=True)
def as_before():
    before = LogSettings(*(getattr(logs.now, name) for name in logs.now.__struct_fields__))
    yield
    set_logs(before)


@pytest.fixture
def log(caplog):
    """log(**settings): logs so from now on. Returns what is logged: the fields of each request."""
    caplog.set_level(logging.DEBUG)

    def start(**settings):
        set_logs(log_settings(ServerConfig(log_requests=True, **settings)))
        return Lines(caplog)

    return start


class Lines:
    def __init__(self, caplog):
        self._caplog = caplog

    @property
    def text(self) -> str:
        return self._caplog.text

    @property
    def fields(self) -> list[dict]:
        return [getattr(record, FIELDS) for record in self._caplog.records if record.name == NAME]


async def ask(fake, key: str = "hush-key", **body):
    headers = {"authorization": f"Bearer {key}", "x-request-id": "req-1"}
    async with fake.client() as client:
        return await client.post("/v1/completions", json={"prompt": PROMPT, "temperature": 0.5} | body, headers=headers)


async def test_level_0(server, log, tokenizer):
    lines = log(log_requests_level=0)
    await ask(server(api_key="hush-key"))
    (fields,) = lines.fields
    assert fields["request_id"] == "req-1"
    assert fields["key"] == "api_key"
    assert (fields["method"], fields["path"], fields["status"]) == ("POST", "/v1/completions", 200)
    assert fields["model"] == "tiny"
    assert fields["prompt_tokens"] == len(tokenizer.encode(PROMPT))
    assert fields["finish_reasons"] == "stop"
    assert 0 <= fields["prepare_s"] <= fields["first_token_s"] <= fields["seconds"]
    assert not {"sampling", "prompts", "answers"} & set(fields)
    assert "request_id=req-1 key=api_key" in lines.text


@pytest.mark.parametrize("level", [0, 1])
async def test_below_level_2_nothing_that_a_user_wrote(server, log, level):
    lines = log(log_requests_level=level)
    await ask(server(api_key="hush-key"), stop=["secret stop"], user="secret user")
    assert lines.fields
    assert "secret" not in lines.text
    assert "Hello" not in lines.text


async def test_level_1_has_the_numbers_of_sampling(server, log):
    lines = log(log_requests_level=1)
    await ask(server(), stop="x")
    assert lines.fields[0]["sampling"]["temperature"] == 0.5
    assert "stop" not in lines.fields[0]["sampling"]


async def test_levels_2_and_3_have_texts(server, log, monkeypatch):
    monkeypatch.setattr("raysgl.api.request_log.BEGINNING", 5)
    lines = log(log_requests_level=2)
    await ask(server(), n=2)
    assert (lines.fields[0]["prompts"], lines.fields[0]["answers"]) == (["the s"], ["Hello", "Hello"])
    log(log_requests_level=3)
    await ask(server(), stream=True)
    assert (lines.fields[1]["prompts"], lines.fields[1]["answers"]) == ([PROMPT], ["Hello 👩‍👩‍👧 world"])


@pytest.mark.parametrize("level", [0, 3])
async def test_no_log_has_a_key(server, log, level):
    lines = log(log_requests_level=level, log_level="debug")
    fake = server(api_key="hush-key", admin_api_key="hush-admin")
    for key in ("hush-key", "hush-admin", "hush-wrong"):
        await ask(fake, key)
        async with fake.client() as client:
            told = [await client.get(path, headers={"x-api-key": key}) for path in ("/server_info", "/metrics", "/nothing")]
            told.append(await client.post("/v1/completions", content=b"{", headers={"authorization": f"Bearer {key}"}))
        assert not [response for response in told if "hush" in response.text]
    assert len(lines.fields) == 3 * 4
    assert {fields["status"] for fields in lines.fields} == {200, 400, 401, 404}
    assert "hush" not in lines.text
    assert "hush" not in str(lines.fields)


async def test_probes_are_not_logged_and_a_line_stays_a_line(server, log):
    lines = log()
    fake = server()
    async with fake.client() as client:
        await client.get("/health")
        await client.get("/metrics")
        assert lines.fields == []
        await client.get("/x%0Ay", headers={"x-request-id": 'a b"c'})
    (line,) = [line for line in lines.text.splitlines() if "request_id" in line]
    assert r'request_id="a b\"c"' in line
    assert "path=unknown" in line


async def test_nothing_is_logged_unless_it_is_asked_for(server, caplog):
    caplog.set_level(logging.DEBUG)
    set_logs(log_settings(ServerConfig()))
    await ask(server())
    assert NAME not in caplog.text


async def test_it_changes_live(server, log):
    lines = log(log_requests_level=0)
    fake = server()
    async with fake.client() as client:
        answer = await client.post("/configure_logging", json={"log_requests_level": 2})
        assert answer.json() == {"log_level": "info", "log_format": "text", "log_requests": True, "log_requests_level": 2}
        await ask(fake)
        assert lines.fields[-1]["prompts"] == [PROMPT]
        await client.post("/configure_logging", json={"log_requests": False})
        before = len(lines.fields)
        await ask(fake)
        assert len(lines.fields) == before
        for bad in ({}, {"log_requests_level": 4}, {"log_format": "xml"}):
            assert (await client.post("/configure_logging", json=bad)).status_code == 400


def test_json_lines():
    record = logging.LogRecord("raysgl.x", logging.INFO, "", 1, "request %s", ("id",), None)
    setattr(record, FIELDS, {"status": 200, "odd": {1, 2}})
    line = json.loads(JsonFormatter().format(record))
    assert (line["level"], line["logger"], line["message"], line["status"]) == ("info", "raysgl.x", "request id", 200)
    assert line["time"].endswith("+00:00")
