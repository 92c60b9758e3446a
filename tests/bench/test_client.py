"""The benchmark's own HTTP client and its arithmetic, against a scripted server."""

from __future__ import annotations

import asyncio
import json

import pytest

from raysgl.bench import load
from raysgl.bench.client import HTTPFailure, Target, events, request
from raysgl.bench.dialects import DIALECTS, Asking, Completion
from raysgl.bench.figures import Targets, figures
from raysgl.bench.load import Run, shuffled_prompts
from raysgl.bench.report import Report, environment, percentile


class Scripted:
    """Answers each connection with the next of these pieces of bytes, written one by one."""

    def __init__(self, *answers: list[bytes]):
        self.answers = list(answers)
        self.requests: list[bytes] = []

    async def __aenter__(self) -> Target:
        self.server = await asyncio.start_server(self.serve, "127.0.0.1", 0)
        return Target.parse(f"http://127.0.0.1:{self.server.sockets[0].getsockname()[1]}")

    async def __aexit__(self, *_):
        self.server.close()

    async def serve(self, reader, writer):
        head = await reader.readuntil(b"\r\n\r\n")
        length = next(int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length"))
        self.requests.append(head + await reader.readexactly(length))
        for piece in self.answers.pop(0):
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0.001)
        writer.close()


HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


def sse(*texts: str, usage: dict | None = None) -> bytes:
    lines = [f"data: {json.dumps({'choices': [{'text': text}]})}\n\n" for text in texts]
    if usage:
        lines.append(f"data: {json.dumps({'choices': [], 'usage': usage})}\n\n")
    return "".join(lines).encode()


@pytest.mark.parametrize(
    ("delta", "brings"),
    [
        ({"role": "assistant", "content": ""}, False),
        ({"content": "x"}, True),
        ({"content": None, "reasoning_content": "x"}, True),
    ],
)
def test_what_a_chat_thinks_counts_as_what_it_says(delta, brings):
    assert DIALECTS["openai-chat"].read({"choices": [{"delta": delta}]}, Asking("m"), Completion(0.0)) is brings


async def collect(target: Target) -> list[bytes]:
    return [data async for data in events(target, "/x", {"a": 1})]


@pytest.mark.parametrize("cut", [1, 3, 7, 50, 10_000])
async def test_events_whatever_the_pieces(cut):
    body = sse("one", "zwei ü", "three") + b": comment\n\n" + b"data: [DONE]\n\n"
    wire = HEAD + b"".join(chunk(body[i : i + cut]) for i in range(0, len(body), cut)) + b"0\r\n\r\n"
    async with Scripted([wire[i : i + 2 * cut] for i in range(0, len(wire), 2 * cut)]) as target:
        found = [json.loads(data)["choices"][0]["text"] for data in await collect(target)]
    assert found == ["one", "zwei ü", "three"]


@pytest.mark.parametrize(
    ("answer", "status", "said"),
    [
        (b"HTTP/1.1 429 Too Many\r\nContent-Length: 4\r\n\r\nbusy", 429, "HTTP 429: busy"),
        (HEAD + chunk(sse("a")), 0, "broke"),
        (HEAD + chunk(sse("a")) + b"0\r\n\r\n", 0, "without [DONE]"),
        (b"", 0, "broke"),
    ],
)
async def test_failures(answer, status, said):
    async with Scripted([answer]) as target:
        with pytest.raises(HTTPFailure) as caught:
            await collect(target)
    assert caught.value.status == status and said in str(caught.value)


async def test_nobody_there():
    with pytest.raises(HTTPFailure, match="cannot connect to 127.0.0.1:1"):
        await request(Target.parse("127.0.0.1:1"), "GET", "/")


async def test_whole_answers():
    async with Scripted([b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"], [HEAD + chunk(b"abc") + b"0\r\n\r\n"]) as target:
        assert await request(target, "GET", "/") == (200, b"{}")
        assert await request(target, "GET", "/") == (200, b"abc")


def test_targets():
    assert Target.parse("http://h:1/v1") == Target("http", "h", 1, "")
    assert Target.parse("https://h/base/v1/") == Target("https", "h", 443, "/base")
    with pytest.raises(ValueError, match="not an http address"):
        Target.parse("ftp://h")


async def test_a_run_counts_tokens_and_errors():
    usage = {"prompt_tokens": 7, "completion_tokens": 3, "prompt_tokens_details": {"cached_tokens": 4}}
    good = [HEAD, chunk(sse("a")), chunk(sse("b", "c", usage=usage) + b"data: [DONE]\n\n"), b"0\r\n\r\n"]
    bad = [b"HTTP/1.1 500 Oh\r\nContent-Length: 2\r\n\r\nno"]
    script = Scripted(good, bad, good)
    seen: list[int] = []
    async with script as target:
        run = await load.run(target, Asking("m"), [[1], [2], [3]], 3, 1, seen.append)
    assert seen == [1, 2, 3]
    assert [c.output_tokens for c in run.good] == [3, 3]
    assert run.errors == ["HTTP 500: no"]
    assert all(len(c.arrivals) == 3 and c.cached_tokens == 4 and c.prompt_tokens == 7 for c in run.good)
    body = json.loads(script.requests[0].split(b"\r\n\r\n")[1])
    assert body["prompt"] == [1] and body["max_tokens"] == 3 and body["ignore_eos"] and body["temperature"] == 0
    found = figures(run, Targets())
    assert found["errors"] == 1 and found["output_tokens"] == 6 and found["cached_tokens"] == 8


def test_arithmetic():
    completion = Completion(started=1.0, arrivals=[1.5, 1.75, 2.5], ended=2.5, output_tokens=5)
    assert completion.ttft == 0.5 and completion.tpot == 0.25
    assert Run([completion], 2.0).output_rate == 2.5
    assert percentile([3.0, 1.0, 2.0], 0.5) == 2.0 and percentile([], 0.5) == 0.0 and percentile([1.0], 1.0) == 1.0


def test_prompts_share_what_they_should():
    prompts = shuffled_prompts([5, 6, 7, 8], 4, 60, shared=40, seed=1)
    assert [len(p) for p in prompts] == [60] * 4
    assert len({tuple(p[:40]) for p in prompts}) == 1 and len({tuple(p) for p in prompts}) == 4
    assert prompts == shuffled_prompts([5, 6, 7, 8], 4, 60, shared=40, seed=1)


def test_reports_say_where_they_come_from(capsys):
    report = Report("speed")
    report.add("rate", "tokens", 12.5, "tokens/s")
    report.table(["load", "p50"], [["all of it", "34.25"]])
    report.show(as_json=True)
    shown = json.loads(capsys.readouterr().out)
    assert shown["figures"] == {"rate": 12.5} and set(environment()) < set(shown)
    report.show(as_json=False)
    table = capsys.readouterr().out
    assert "12.50" in table and "34.25" in table and "machine:" in table and "versions: python" in table
