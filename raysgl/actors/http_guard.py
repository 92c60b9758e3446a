"""What uvicorn leaves open: a request's head may not be endless, nor take for ever."""

from __future__ import annotations

import asyncio
from asyncio import Event

import orjson
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEAD_TIMEOUT_S = 30.0
"""From a connection's beginning, or a later request's first byte, to the end of the head."""


def guarded(max_head: int, leaving: Event) -> type[HttpToolsProtocol]:
    """uvicorn's protocol with heads of at most so many bytes. leaving: once set, no connection is used for another request."""

    class Guarded(HttpToolsProtocol):
        _head = 0
        _in_head = True
        _deadline: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:
            super().connection_made(transport)
            self._start_head()

        def connection_lost(self, exc: Exception | None) -> None:
            self._end_head()
            super().connection_lost(exc)

        def data_received(self, data: bytes) -> None:
            if self.transport.is_closing():
                return
            if self._in_head:
                self._head += len(data)
                if self._head > max_head and b"\r\n\r\n" not in data[: max(0, max_head - self._head + len(data)) + 4]:
                    self._refuse(431, "Request Header Fields Too Large", f"A request's head may have {max_head} bytes")
                    return
            super().data_received(data)

        def on_message_begin(self) -> None:
            if not self._in_head:  # a later request of this connection
                self._start_head()
            super().on_message_begin()

        def on_headers_complete(self) -> None:
            self._end_head()
            super().on_headers_complete()
            if leaving.is_set() and self.cycle is not None:
                self.cycle.keep_alive = False  # the answer says so

        def _start_head(self) -> None:
            self._head, self._in_head = 0, True
            self._deadline = self.loop.call_later(HEAD_TIMEOUT_S, self._late)

        def _end_head(self) -> None:
            self._in_head = False
            if self._deadline is not None:
                self._deadline.cancel()
                self._deadline = None

        def _late(self) -> None:
            self._refuse(408, "Request Timeout", f"A request's head may take {HEAD_TIMEOUT_S:.0f} seconds")

        def _refuse(self, status: int, reason: str, message: str) -> None:
            error = {"message": message, "type": "invalid_request_error", "param": None, "code": None}
            body = orjson.dumps({"error": error})
            head = f"HTTP/1.1 {status} {reason}\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n"
            self.transport.write(head.encode() + b"connection: close\r\n\r\n" + body)
            self.transport.close()
            self._end_head()

    return Guarded
