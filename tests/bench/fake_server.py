"""A server whose answers and delays are known: OpenAI's completions and chat, SGLang's /generate, /tokenize. In a thread of its own."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from dataclasses import dataclass, field
from typing import Any, Self


@dataclass
class Seen:
    """A request, and when each of its tokens was written (time.perf_counter)."""

    path: str
    headers: dict[str, str]
    body: dict[str, Any]
    sent: list[float] = field(default_factory=list)


class FakeServer:
    """Answers with the words `w0 w1 ...` (ids 100, 101, ...): the first after `first_s`, each other `gap_s` later.

    most: requests that were answered at a time. fail: paths that get a 500.
    """

    def __init__(self, first_s: float = 0.0, gap_s: float = 0.0, fail: tuple[str, ...] = (), newline: str = "\n"):
        self._first_s, self._gap_s, self._fail, self._newline = first_s, gap_s, fail, newline
        self.seen: list[Seen] = []
        self.most = self._now = 0
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        self._ready.wait(10)
        return self

    def __exit__(self, *_) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def asked(self, path: str) -> list[Seen]:
        return [seen for seen in self.seen if seen.path == path]

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        server = self._loop.run_until_complete(asyncio.start_server(self._serve, "127.0.0.1", 0))
        self._port = server.sockets[0].getsockname()[1]
        self._ready.set()
        self._loop.run_forever()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        lines = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:] if line)}
        data = await reader.readexactly(int(headers["content-length"]))
        seen = Seen(lines[0].split()[1], headers, json.loads(data or b"{}"))
        self.seen.append(seen)
        try:
            await self._answer(seen, writer)
            await writer.drain()
        finally:
            writer.close()

    async def _answer(self, seen: Seen, writer: asyncio.StreamWriter) -> None:
        if seen.path in self._fail:
            return _whole(writer, {"error": "as told"}, "500 Oh")
        if seen.path == "/v1/models":
            return _whole(writer, {"data": [{"id": "fake"}]})
        if seen.path == "/tokenize":
            return _whole(writer, {"tokens": list(range(len(seen.body["prompt"].split())))})
        if seen.path == "/flush_cache":
            return _whole(writer, {})
        shape = SHAPES[seen.path]
        body, count = seen.body, shape.tokens(seen.body)
        if body.get("stream"):
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n")
            for event in shape.before():
                self._event(writer, event)
        self._now += 1
        self.most = max(self.most, self._now)
        for i in range(count):
            await asyncio.sleep(self._gap_s if i else self._first_s)
            seen.sent.append(time.perf_counter())
            if body.get("stream"):
                self._event(writer, shape.event(i, count, body))
        self._now -= 1
        if not body.get("stream"):
            return _whole(writer, shape.whole(count, body))
        for event in shape.after(count):
            self._event(writer, event)
        writer.write(f"data: [DONE]{self._newline * 2}".encode())

    def _event(self, writer: asyncio.StreamWriter, event: dict) -> None:
        writer.write(f"data: {json.dumps(event)}{self._newline * 2}".encode())


def _whole(writer: asyncio.StreamWriter, answer: dict, status: str = "200 OK") -> None:
    data = json.dumps(answer).encode()
    writer.write(f"HTTP/1.1 {status}\r\nContent-Length: {len(data)}\r\n\r\n".encode() + data)


def words(count: int) -> str:
    return "".join(f"w{i} " for i in range(count))


def _usage(count: int) -> dict:
    return {"prompt_tokens": 7, "completion_tokens": count, "prompt_tokens_details": {"cached_tokens": 4}}


class _Completions:
    def tokens(self, body: dict) -> int:
        return body["max_tokens"]

    def before(self) -> list[dict]:
        return []

    def event(self, i: int, count: int, body: dict) -> dict:
        ids = {"token_ids": [100 + i]} if body.get("return_token_ids") else {}
        return {"choices": [{"text": f"w{i} ", **ids}]}

    def whole(self, count: int, body: dict) -> dict:
        return {"choices": [{"text": words(count), "token_ids": list(range(100, 100 + count))}], "usage": _usage(count)}

    def after(self, count: int) -> list[dict]:
        return [{"choices": [], "usage": _usage(count)}]


class _Chat(_Completions):
    def tokens(self, body: dict) -> int:
        return body["max_completion_tokens"]

    def before(self) -> list[dict]:
        return [{"choices": [{"delta": {"role": "assistant", "content": ""}}]}]

    def event(self, i: int, count: int, body: dict) -> dict:
        return {"choices": [{"delta": {"content": f"w{i} "}, "finish_reason": None}]}

    def whole(self, count: int, body: dict) -> dict:
        return {"choices": [{"message": {"role": "assistant", "content": words(count)}}], "usage": _usage(count)}


class _Generate(_Completions):
    """incremental: events have what is new, not all that is known."""

    incremental = False

    def tokens(self, body: dict) -> int:
        return body["sampling_params"]["max_new_tokens"]

    def event(self, i: int, count: int, body: dict) -> dict:
        if not body.get("incremental"):
            return self.whole(i + 1, body)
        return self.whole(i + 1, body) | {"text": f"w{i} ", "output_ids": [100 + i]}

    def whole(self, count: int, body: dict) -> dict:
        meta = {"prompt_tokens": 7, "completion_tokens": count, "cached_tokens": 4}
        return {"text": words(count), "output_ids": list(range(100, 100 + count)), "meta_info": meta}

    def after(self, count: int) -> list[dict]:
        return []


SHAPES = {"/v1/completions": _Completions(), "/v1/chat/completions": _Chat(), "/generate": _Generate()}
