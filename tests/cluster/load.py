"""Streams that never stop coming, each compared with what the same prompt gave while nothing was broken."""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import httpx

from tests.cluster.nodes import MODEL

PAUSE_S = 0.01
"""Between the end of a stream and the next; the client shares the machine's cores."""
NOTED_S = 0.2


@dataclass(eq=False)
class Call:
    """A stream, as its client sees it. port: of the client's end, which tells which ingress has it; 0 without a connection."""

    number: int
    started: float
    port: int = 0
    tokens: list[int] = field(default_factory=list)
    finish: str | None = None
    error: str = ""
    ended: float = 0.0
    last: float = 0.0
    waits: list[tuple[float, float]] = field(default_factory=list)
    """(when it ended, seconds) of waits for the first chunk, or the next one, that were worth noting."""


class Load:
    """`streams` clients, each with one greedy stream at a time, out of as many different prompts."""

    def __init__(self, url: str, streams: int, tokens: int):
        self._url, self._streams, self._tokens = url, streams, tokens
        chance = random.Random(0)
        shared = [[chance.randrange(3, 256) for _ in range(64)] for _ in range(4)]
        self._prompts = [
            shared[i % 4][: chance.choice((0, 32, 64))] + [chance.randrange(3, 256) for _ in range(chance.randrange(8, 160))]
            for i in range(streams)
        ]
        self._wanted: list[list[int]] = []
        self.live: set[Call] = set()
        self.done: list[Call] = []

    async def learn(self) -> None:
        """Run each prompt once, undisturbed."""
        async with self._client() as client:
            calls = await asyncio.gather(*(self._call(client, i) for i in range(self._streams)))
        broken = [call.error for call in calls if call.error or call.finish != "length"]
        assert not broken, f"undisturbed streams fail: {broken[:3]}"
        self._wanted = [call.tokens for call in calls]
        assert len(set(map(tuple, self._wanted))) > self._streams // 2, "the model says the same to everything"
        self.done.clear()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Streams run inside; when it is left those under way come to their end."""
        stop = asyncio.Event()
        numbers = itertools.cycle(range(self._streams))
        self.done.clear()

        async def one() -> None:
            while not stop.is_set():
                await self._call(client, next(numbers))
                await asyncio.sleep(PAUSE_S)

        async with self._client() as client, asyncio.timeout(300):
            tasks = [asyncio.create_task(one()) for _ in range(self._streams)]
            try:
                await self.until_all_stream()
                yield
            finally:
                stop.set()
                await asyncio.gather(*tasks)

    async def until_all_stream(self) -> None:
        """Until every client has had a chunk of the stream it has now."""
        while len(self.live) < self._streams or not all(call.last for call in self.live):
            await asyncio.sleep(0.02)

    def since(self, at: float) -> set[Call]:
        """Those that were under way at some time since then."""
        return {call for call in (*self.live, *self.done) if not call.ended or call.ended >= at}

    def longest_wait(self, since: float) -> float:
        """The longest that a client waited for its first chunk, or the next one, and got it since then; in seconds."""
        waits = [wait for call in (*self.done, *self.live) for end, wait in call.waits if end >= since]
        return max(waits, default=0.0)

    def failed(self, excused: set[Call] = frozenset()) -> list[str]:
        """What went wrong with the streams that are over. excused: of these, only other tokens than the wanted."""
        wrong = []
        for call in self.done:
            if call.error:
                if call not in excused:
                    wrong.append(f"prompt {call.number}: {call.error}")
            elif call.tokens != self._wanted[call.number]:
                wrong.append(f"prompt {call.number}: {_difference(call.tokens, self._wanted[call.number])}")
        return wrong

    async def _call(self, client: httpx.AsyncClient, number: int) -> Call:
        call = Call(number, time.monotonic())
        self.live.add(call)
        try:
            await self._stream(client, call)
        except httpx.HTTPError as error:
            call.error = f"{type(error).__name__} {error}"
        call.ended = time.monotonic()
        self.live.discard(call)
        self.done.append(call)
        return call

    async def _stream(self, client: httpx.AsyncClient, call: Call) -> None:
        body = {
            "model": MODEL,
            "prompt": self._prompts[call.number],
            "max_tokens": self._tokens,
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
            "return_token_ids": True,
        }

        async def trace(event: str, info: dict) -> None:
            if event == "connection.connect_tcp.complete":
                call.port = info["return_value"].get_extra_info("client_addr")[1]

        async with client.stream("POST", "/v1/completions", json=body, extensions={"trace": trace}) as answer:
            if answer.status_code != 200:
                call.error = f"HTTP {answer.status_code} {(await answer.aread()).decode()[:200]}"
                return
            async for line in answer.aiter_lines():
                if line == "data: [DONE]":
                    break
                if line:
                    self._take(call, json.loads(line.removeprefix("data: ")))
        if not call.error and call.finish != "length":
            call.error = f"ended with finish_reason {call.finish}"

    def _take(self, call: Call, event: dict) -> None:
        now = time.monotonic()
        wait = now - (call.last or call.started)
        if wait > NOTED_S:
            call.waits.append((now, wait))
        call.last = now
        if "error" in event:
            call.error = f"error event {event['error']['message'][:200]}"
            return
        for choice in event["choices"]:
            call.tokens += choice.get("token_ids", ())
            call.finish = choice["finish_reason"] or call.finish

    def _client(self) -> httpx.AsyncClient:
        # No connection is used twice: which ingress has a stream is decided when it connects.
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
        return httpx.AsyncClient(base_url=self._url, timeout=httpx.Timeout(120, connect=10), limits=limits)


def _difference(got: list[int], wanted: list[int]) -> str:
    same = next((i for i, (a, b) in enumerate(zip(got, wanted)) if a != b), min(len(got), len(wanted)))
    return f"{len(got)} tokens instead of {len(wanted)}, other ones from {same} on: {got[same:][:4]}, not {wanted[same:][:4]}"
