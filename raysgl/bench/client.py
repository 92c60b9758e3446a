"""An HTTP/1.1 client for event streams, straight on asyncio: about a tenth of the CPU of a general client per chunk.

On small machines client and server share the cores, so what the client costs is taken from the server.
"""

from __future__ import annotations

import asyncio
import json
import urllib.parse
from collections.abc import AsyncIterator
from dataclasses import dataclass, field


class HTTPFailure(Exception):
    """An answer other than 200, or one that broke off. `status` is 0 when there was none. `retry_after`: seconds, 0 if it does not say."""

    def __init__(self, status: int, message: str, retry_after: float = 0.0):
        super().__init__(f"HTTP {status}: {message}" if status else message)
        self.status, self.retry_after = status, retry_after


@dataclass(frozen=True)
class Target:
    """Where a server is, and the key that it wants ("": none)."""

    scheme: str
    host: str
    port: int
    prefix: str
    api_key: str = field(default="", repr=False)

    @classmethod
    def parse(cls, url: str, api_key: str = "") -> Target:
        """From http(s)://host[:port][/prefix]; a trailing /v1 is dropped. Raises ValueError."""
        parts = urllib.parse.urlsplit(url if "://" in url else f"http://{url}")
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"{url!r} is not an http address")
        port = parts.port or (443 if parts.scheme == "https" else 80)
        if not api_key.isprintable() or not api_key.isascii():
            raise ValueError("the API key has characters that a header cannot carry")
        return cls(parts.scheme, parts.hostname, port, parts.path.rstrip("/").removesuffix("/v1"), api_key)


async def events(target: Target, path: str, body: dict) -> AsyncIterator[bytes]:
    """POST `body` and yield the data of each server-sent event as it comes, up to [DONE]. Raises `HTTPFailure`."""
    reader, writer = await _send(target, "POST", path, body)
    try:
        status, headers = await _head(reader)
        if status != 200:
            message = (await _rest(reader, headers)).decode(errors="replace")[:500]
            raise HTTPFailure(status, message, float(headers.get("retry-after", 0)))
        buffer = b""
        async for piece in _pieces(reader, headers):
            buffer += piece.replace(b"\r", b"")  # some servers end lines with \r\n; JSON has no bare \r
            while (end := buffer.find(b"\n\n")) >= 0:
                event, buffer = buffer[:end], buffer[end + 2 :]
                if not event.startswith(b"data: "):
                    continue
                if event == b"data: [DONE]":
                    return
                yield event[6:]
        raise HTTPFailure(0, "the stream ended without [DONE]")
    except (ConnectionError, asyncio.IncompleteReadError) as error:
        raise HTTPFailure(0, f"the connection broke: {error}") from None
    finally:
        writer.close()


async def request(target: Target, method: str, path: str, body: dict | None = None) -> tuple[int, bytes]:
    """A whole answer: status and body. Raises `HTTPFailure` when there is no answer."""
    reader, writer = await _send(target, method, path, body)
    try:
        status, headers = await _head(reader)
        return status, await _rest(reader, headers)
    except (ConnectionError, asyncio.IncompleteReadError) as error:
        raise HTTPFailure(0, f"the connection broke: {error}") from None
    finally:
        writer.close()


async def _send(target: Target, method: str, path: str, body: dict | None) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    try:
        reader, writer = await asyncio.open_connection(
            target.host, target.port, ssl=True if target.scheme == "https" else None, limit=2**20
        )
    except OSError as error:
        raise HTTPFailure(0, f"cannot connect to {target.host}:{target.port}: {error.strerror or error}") from None
    data = json.dumps(body).encode() if body is not None else b""
    key = f"Authorization: Bearer {target.api_key}\r\n" if target.api_key else ""
    head = (
        f"{method} {target.prefix}{path} HTTP/1.1\r\nHost: {target.host}:{target.port}\r\nConnection: close\r\n{key}"
        f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
    )
    writer.write(head.encode() + data)
    return reader, writer


async def _head(reader: asyncio.StreamReader) -> tuple[int, dict[str, str]]:
    """Status and headers (names in lower case)."""
    lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
    return int(lines[0].split(" ", 2)[1]), headers


async def _pieces(reader: asyncio.StreamReader, headers: dict[str, str]) -> AsyncIterator[bytes]:
    """The body as it arrives."""
    if headers.get("transfer-encoding", "").lower() == "chunked":
        while size := int((await reader.readuntil(b"\r\n")).split(b";")[0], 16):
            yield (await reader.readexactly(size + 2))[:-2]
        return
    left = int(headers["content-length"]) if "content-length" in headers else None
    while left is None or left > 0:
        piece = await reader.read(65536 if left is None else min(left, 65536))
        if not piece:
            return
        if left is not None:
            left -= len(piece)
        yield piece


async def _rest(reader: asyncio.StreamReader, headers: dict[str, str]) -> bytes:
    return b"".join([piece async for piece in _pieces(reader, headers)])
