"""The parts of HTTP that the endpoints share: bodies, disconnects, request ids, draining, errors."""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager

from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from raysgl.api.errors import ApiError, bad_request, internal, unavailable

log = logging.getLogger(__name__)

REQUEST_ID = "raysgl.request_id"
"""Where the scope of a request has its id."""


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
        message = await receive()
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


def request_id(headers: Headers) -> str:
    """The client's X-Request-Id if it can be used, else a random one."""
    given = headers.get("x-request-id", "")
    return given if _fits_header(given) else uuid.uuid4().hex


def _fits_header(request_id: str) -> bool:
    return 0 < len(request_id) <= 256 and request_id.isascii() and request_id.isprintable()


class RequestIds:
    """ASGI middleware: every answer says its request's id, those of the framework too."""

    def __init__(self, app: ASGIApp):
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        mine = request_id(Headers(scope=scope))
        scope[REQUEST_ID] = mine

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = message.setdefault("headers", [])
                if all(name != b"x-request-id" for name, _ in headers):
                    message["headers"] = [*headers, (b"x-request-id", mine.encode())]
            await send(message)

        await self._app(scope, receive, send_with_id)


class Reply:
    """Sends one answer and remembers whether it has begun."""

    def __init__(self, send: Send, request_id: str, error_body: Callable[[ApiError], bytes]):
        self._send = send
        self.request_id = request_id
        self.begun = False
        self.error_body = error_body
        self.error_in_stream: Callable[[ApiError], bytes] = ApiError.event

    def name(self, request_id: str | None) -> None:
        """The request brought an id of its own; the header says it where it can."""
        if request_id and _fits_header(request_id):
            self.request_id = request_id

    async def begin(self, status: int, content_type: bytes, extra: list[tuple[bytes, bytes]]) -> None:
        self.begun = True
        headers = [(b"content-type", content_type), (b"x-request-id", self.request_id.encode()), *extra]
        await self._send({"type": "http.response.start", "status": status, "headers": headers})

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
        # The rest of a body that was too large is not read, so the connection is of no further use.
        close = [(b"connection", b"close")] if error.status == 413 else []
        await self.whole(self.error_body(error), error.status, extra=(*error.headers(), *close))


Handler = Callable[[Headers, Receive, Reply], Awaitable[None]]


class HandlerResponse(Response):
    """A response that runs a handler on the bare connection, and turns whatever it raises into an answer.

    body_limit: bytes. error_body: the shape of errors.
    """

    def __init__(self, handler: Handler, body_limit: int, error_body: Callable[[ApiError], bytes] = ApiError.body):
        self.handler, self.body_limit, self.error_body = handler, body_limit, error_body
        self.status_code = 200
        self.background = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope)
        reply = Reply(send, scope[REQUEST_ID], self.error_body)
        try:
            await self.handler(headers, limited(receive, headers, self.body_limit), reply)
        except ClientGone:
            pass
        except ApiError as error:
            await reply.error(error)
        except Exception:
            log.exception("request %s failed", reply.request_id)
            await reply.error(internal())
