"""The parts of HTTP that the endpoints share: bodies, disconnects, request ids, draining, errors."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, nullcontext

from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from raysgl.api.call import current, fits_header
from raysgl.api.errors import ApiError, bad_request, internal, unavailable

log = logging.getLogger(__name__)


BODY_TIMEOUT_S = 60.0
"""How long a client may be silent in the middle of its body."""


class ClientGone(Exception):
    """The client has closed the connection: nobody wants an answer."""


class Gate:
    """Counts requests in progress. Once draining, it lets no new ones in."""

    def __init__(self) -> None:
        self.open = 0
        self.draining = False
        self._idle = asyncio.Event()
        self._idle.set()

    @contextmanager
    def enter(self) -> Iterator[None]:
        """ApiError 503 while draining."""
        if self.draining:
            raise unavailable("The server is stopping")
        self.open += 1
        self._idle.clear()
        try:
            yield
        finally:
            self.open -= 1
            if not self.open:
                self._idle.set()

    async def drain(self, timeout: float) -> bool:
        """Let nobody in, and wait until all are out, at most so many seconds. Whether they are."""
        self.draining = True
        try:
            await asyncio.wait_for(self._idle.wait(), timeout)
        except TimeoutError:
            return False
        return True


async def read_body(headers: Headers, receive: Receive) -> bytes:
    """The whole body. ApiError 400 if it says that it is no JSON, 413 beyond the endpoint's limit; ClientGone."""
    kind = headers.get("content-type", "application/json").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise bad_request(f"The content type must be application/json, not {kind[:60]}", code="invalid_content_type")
    parts = []
    while True:
        try:
            async with asyncio.timeout(BODY_TIMEOUT_S):
                message = await receive()
        except TimeoutError:
            raise ApiError(408, f"No more of the body came for {BODY_TIMEOUT_S:.0f} seconds", code="body_timeout") from None
        if message["type"] == "http.disconnect":
            raise ClientGone
        parts.append(message.get("body", b""))
        if not message.get("more_body", False):
            return b"".join(parts)


def limited(receive: Receive, headers: Headers, limit: int) -> Receive:
    """A `receive` that raises ApiError 413 for a body beyond so many bytes; at once where the client says its length."""
    length = headers.get("content-length", "")
    size = 0
    known = length.isdigit() and (len(length) > 18 or int(length) > limit)

    async def receive_limited() -> Message:
        nonlocal size
        if known:
            raise _too_large(limit)
        message = await receive()
        size += len(message.get("body", b""))
        if size > limit:
            raise _too_large(limit)
        return message

    return receive_limited


def _too_large(limit: int) -> ApiError:
    return ApiError(413, f"The body is larger than {limit} bytes", code="body_too_large")


@asynccontextmanager
async def until_disconnect(receive: Receive) -> AsyncIterator[None]:
    """Cancels what runs inside when the client goes away, and raises ClientGone then. The body must have been read."""
    task = asyncio.current_task()
    gone = False

    async def watch() -> None:
        nonlocal gone
        while (await receive())["type"] != "http.disconnect":
            pass
        gone = True
        task.cancel()

    watcher = asyncio.create_task(watch())
    try:
        yield
    except asyncio.CancelledError:
        # The watcher only runs while the task waits inside, so a cancellation of its making always arrives here.
        if gone and not task.uncancel():
            raise ClientGone from None
        raise
    finally:
        watcher.cancel()


class Reply:
    """Sends one answer and remembers whether it has begun."""

    def __init__(self, send: Send, error_body: Callable[[ApiError], bytes]):
        self._send = send
        self._call = current()
        self.begun = False
        self.error_body = error_body
        self.error_in_stream: Callable[[ApiError], bytes] = ApiError.event

    @property
    def request_id(self) -> str:
        return self._call.request_id

    def name(self, request_id: str | None) -> None:
        """The request brought an id of its own; the header says it where it can."""
        if request_id and fits_header(request_id):
            self._call.request_id = request_id

    async def begin(self, status: int, content_type: bytes, extra: list[tuple[bytes, bytes]]) -> None:
        self.begun = True
        await self._send(
            {"type": "http.response.start", "status": status, "headers": [(b"content-type", content_type), *extra]}
        )

    async def write(self, body: bytes, more: bool = True) -> None:
        await self._send({"type": "http.response.body", "body": body, "more_body": more})

    async def whole(self, body: bytes, status: int = 200, content_type: bytes = b"application/json", extra: tuple = ()) -> None:
        await self.begin(status, content_type, [(b"content-length", str(len(body)).encode()), *extra])
        await self.write(body, more=False)

    async def error(self, error: ApiError) -> None:
        """An error status; inside a stream, an error event and the end."""
        if self.begun:
            await self.write(self.error_in_stream(error), more=False)
            return
        # The rest of a body that was too large or too slow is not read, so the connection is of no further use.
        close = [(b"connection", b"close")] if error.status in (408, 413) else []
        await self.whole(self.error_body(error), error.status, extra=(*error.headers(), *close))


Handler = Callable[[Headers, Receive, Reply], Awaitable[None]]


class HandlerResponse(Response):
    """A response that runs a handler on the bare connection, and turns whatever it raises into an answer.

    body_limit: bytes. error_body: the shape of errors. It holds the key's allowance for as long as it runs.
    """

    def __init__(self, handler: Handler, body_limit: int, error_body: Callable[[ApiError], bytes]):
        self.handler, self.body_limit, self.error_body = handler, body_limit, error_body
        self.status_code = 200
        self.background = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope)
        reply = Reply(send, self.error_body)
        allowance = current().allowance
        try:
            with nullcontext() if allowance is None else allowance.enter():
                await self.handler(headers, limited(receive, headers, self.body_limit), reply)
        except ClientGone:
            pass
        except ApiError as error:
            await reply.error(error)
        except Exception:
            log.exception("request %s failed", reply.request_id)
            await reply.error(internal())
