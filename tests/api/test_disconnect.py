"""A client that goes away takes its request along, in every state."""

from __future__ import annotations

import asyncio
import json

import pytest

from .fake_backend import Script
from .test_shapes import events, post

PATIENCE_S = 10.0
"""Before a test gives up; what is measured is in docs, not asserted here."""


async def until(condition) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not condition():
            await asyncio.sleep(0.002)


async def send(port: int, body: dict) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    content = json.dumps(body).encode()
    head = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
    writer.write(head % len(content) + content)
    await writer.drain()
    return reader, writer


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("prompt", ["x", ["x", "y"]])
@pytest.mark.parametrize("started", [False, True])
async def test_running_or_waiting_at_the_engine(server, stream, prompt, started):
    """started: whether tokens have arrived; without, it waits in the engine's queue."""
    fake = server(Script([[5, 6]] if started else [], hang=True, delay=0 if started else 3600))
    with fake.live() as port:
        _, writer = await send(port, {"prompt": prompt, "stream": stream, "n": 2})
        await until(lambda: len(fake.backend.streams) == (1 if prompt == "x" else 2))
        if started:
            await asyncio.sleep(0.05)
        assert fake.app.state.gate.open == 1
        writer.close()
        await until(lambda: all(s.aborted == {0, 1} for s in fake.backend.streams))
        await until(lambda: fake.app.state.gate.open == 0)


@pytest.mark.parametrize("prompt", ["x", ["x", "y"]])
async def test_while_it_is_being_routed(server, prompt):
    fake = server(Script([[5]], submit_delay=3600))
    with fake.live() as port:
        _, writer = await send(port, {"prompt": prompt})
        number = 1 if prompt == "x" else 2
        await until(lambda: fake.backend.waiting_submits == number)
        writer.close()
        await until(lambda: fake.backend.cancelled_submits == number)


async def test_in_the_middle_of_a_stream(server):
    fake = server(Script([[5]] * 100_000, delay=0.001))
    with fake.live() as port:
        reader, writer = await send(port, {"prompt": "x", "stream": True, "max_tokens": 500})
        await reader.readuntil(b"data: ")
        writer.close()
        await until(lambda: fake.backend.last.aborted == {0})


async def test_before_the_body_is_complete(server):
    fake = server()
    with fake.live() as port:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n{")
        await writer.drain()
        await until(lambda: fake.app.state.gate.open == 1)
        writer.close()
        await until(lambda: fake.app.state.gate.open == 0)
    assert not fake.backend.streams


async def test_a_reader_that_is_behind_gets_fewer_chunks(server):
    """Tokens coalesce while the socket is full, and none is lost."""
    fake = server(Script([[70]] * 400))
    sent = []

    async def send(message):
        await asyncio.sleep(0.01)
        sent.append(message)

    body = [{"type": "http.request", "body": b'{"prompt": "x", "stream": true, "max_tokens": 400}'}]

    async def receive():
        return body.pop() if body else await asyncio.Event().wait()

    scope = {"type": "http", "method": "POST", "path": "/v1/completions", "headers": [], "query_string": b""}
    await fake.app(scope, receive, send)
    text = b"".join(message.get("body", b"") for message in sent).decode()
    shown = "".join(chunk["choices"][0]["text"] for chunk in events(text))
    assert len(shown) == 400
    assert len(sent) < 100


async def test_after_an_answer_the_connection_lives_on(server):
    """The watcher of the first request does not eat the second."""
    fake = server()
    with fake.live() as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for _ in range(3):
            content = b'{"prompt": "x"}'
            writer.write(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(content) + content)
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200")
            length = next(int(line.split(b":")[1]) for line in head.lower().splitlines() if b"content-length" in line)
            await reader.readexactly(length)
        writer.close()
    assert len(fake.backend.streams) == 3
    assert not any(stream.aborted for stream in fake.backend.streams)


async def test_abort_request(server):
    fake = server(Script([[5]], hang=True))
    async with fake.client() as client:
        answer = asyncio.create_task(client.post("/v1/completions", json={"prompt": "x", "rid": "r1"}))
        other = asyncio.create_task(client.post("/v1/completions", json={"prompt": "x", "rid": "r10"}))
        await until(lambda: len(fake.backend.streams) == 2)
        assert (await client.post("/abort_request", json={"rid": "r1"})).json() == {"aborted": 1}
        assert (await answer).json()["choices"][0]["finish_reason"] == "abort"
        assert not other.done()
        assert (await client.post("/abort_request", json={"abort_all": True})).json() == {"aborted": 1}
        assert (await other).status_code == 200
        assert (await client.post("/abort_request", json={})).status_code == 400


async def test_draining(server):
    fake = server(Script([[5], [6]], delay=0.05))
    gate = fake.app.state.gate
    async with fake.client() as client:
        answer = asyncio.create_task(client.post("/v1/completions", json={"prompt": "x"}))
        await until(lambda: gate.open == 1)
        assert await gate.drain(0.001) is False
        refused = await client.post("/v1/completions", json={"prompt": "x"})
        assert refused.status_code == 503
        assert refused.headers["retry-after"]
        assert (await client.get("/ready")).status_code == 503
        assert (await client.get("/health")).status_code == 200
        assert await gate.drain(PATIENCE_S) is True
        assert (await answer).status_code == 200


async def test_a_cancelled_server_task_is_no_disconnect(server):
    """A cancellation from outside goes through, and gives the request back."""
    fake = server(Script([[5]], hang=True))
    task = asyncio.create_task(post(fake, "/v1/completions", {"prompt": "x"}))
    await until(lambda: fake.backend.streams)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert fake.backend.last.aborted == {0}
