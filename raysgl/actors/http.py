"""The HTTP listener of an ingress, and the bridge for requests that come through Ray Serve's own proxy. No Ray.

uvicorn runs in the ingress's own event loop on the public port; replicas of one node share it (SO_REUSEPORT). That is 20 times
quicker than Serve's proxy, behind which the very same app can still be reached.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import ssl
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from pathlib import Path
from typing import Any

import psutil
import uvicorn

from raysgl.actors.http_guard import guarded
from raysgl.config import ServerConfig

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

KEEP_ALIVE_S = 75
BACKLOG = 2048


class PortTaken(OSError):
    """Somebody else listens there. The message says what to do."""


def listening_socket(host: str, port: int, share: bool = True) -> socket.socket:
    """A bound socket. share: other ingresses may bind the same port. Raises `PortTaken`, or OSError for an address that isn't ours."""
    family, kind, proto, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    sock = socket.socket(family, kind, proto)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if share:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.bind(address)
    except OSError as error:
        sock.close()
        if error.errno == errno.EADDRINUSE:
            raise PortTaken(f"port {port} of {host} is taken; stop what listens there, or choose another port") from None
        if error.errno == errno.EACCES:
            raise OSError(f"port {port} of {host} needs more rights than this user has; choose one above 1023") from None
        raise OSError(f"cannot listen on {host}: {error.strerror}") from None
    return sock


ACCEPT_S = 0.05
"""Time to accept what has been connected, once nothing more can be."""
LEAVE_S = 1.0
"""Then clients have so long to send a request on a connection that they have open: it is answered, and the connection closed."""


def others_listen(port: int) -> bool:
    """Whether another process of this machine listens on the port too."""
    try:
        found = [c.laddr.port for c in psutil.net_connections("tcp") if c.status == psutil.CONN_LISTEN and c.pid != os.getpid()]
    except psutil.AccessDenied:  # macOS
        return False
    return port in found


class HttpServer:
    """Serves `app` on a socket, in the running loop."""

    def __init__(
        self, app: App, sock: socket.socket, drain_timeout_s: float, settings: ServerConfig, log_level: str = "warning"
    ):
        """OSError or ssl.SSLError if the certificate cannot be used."""
        self._leaving = asyncio.Event()
        self._sock = sock
        config = uvicorn.Config(
            app,
            http=guarded(settings.max_header_bytes, self._leaving),
            **_tls(settings),
            ws="none",
            lifespan="on",
            log_level=log_level,
            access_log=False,
            timeout_keep_alive=KEEP_ALIVE_S,
            timeout_graceful_shutdown=max(1, round(drain_timeout_s)),
            backlog=BACKLOG,
            server_header=False,
        )
        self._server = uvicorn.Server(config)
        self._task = asyncio.get_running_loop().create_task(self._server.serve(sockets=[sock]))

    async def started(self) -> None:
        """Until it listens. Raises what kept it from doing so."""
        while not self._server.started:
            if self._task.done():
                self._task.result()
                raise RuntimeError("the HTTP server could not start; see the log")
            await asyncio.sleep(0.01)

    @property
    def alive(self) -> bool:
        return not self._task.done()

    async def leave(self) -> None:
        """Others listen here too: let them have what comes, and answer what is on the way to here.

        A socket that is closed resets the connections that nobody has accepted. With a backlog of none the kernel drops whatever else would
        connect, and the client tries again a second later, when the socket is gone; what still got in is accepted here, with no turn of the
        loop before the end.
        """
        self._leaving.set()
        self._sock.listen(0)
        await asyncio.sleep(ACCEPT_S)
        late = list(_accept_all(self._sock))
        self._sock.shutdown(socket.SHUT_RD)
        for server in self._server.servers:
            server.close()
        self._sock.close()
        config = self._server.config
        for connection in late:
            await asyncio.get_running_loop().connect_accepted_socket(self._protocol, connection, ssl=config.ssl)
        await asyncio.sleep(LEAVE_S)

    def _protocol(self) -> asyncio.Protocol:
        """As uvicorn makes them for connections that it accepts."""
        server = self._server
        return server.config.http_protocol_class(
            config=server.config, server_state=server.server_state, app_state=server.lifespan.state
        )

    async def drain(self) -> None:
        """Stop listening and close idle connections; answers under way may finish within the drain timeout."""
        self._server.should_exit = True
        await self._task


def _accept_all(sock: socket.socket) -> Iterator[socket.socket]:
    """Connections that wait to be accepted. sock: not blocking."""
    while True:
        try:
            connection, _ = sock.accept()
        except ConnectionAbortedError:
            continue
        except BlockingIOError:
            return
        connection.setblocking(False)
        yield connection


def _tls(settings: ServerConfig) -> dict[str, Any]:
    """uvicorn's settings."""
    if settings.ssl_certfile is None:
        return {}
    for name in ("ssl_certfile", "ssl_keyfile", "ssl_ca_certs"):  # ssl itself would not say which
        path = getattr(settings, name)
        if path is not None and not Path(path).is_file():
            raise FileNotFoundError(f"{name}: there is no file {path}")
    password, ca = settings.ssl_keyfile_password, settings.ssl_ca_certs
    return {
        "ssl_certfile": settings.ssl_certfile,
        "ssl_keyfile": settings.ssl_keyfile,
        "ssl_keyfile_password": password and password.get_secret_value(),
        "ssl_ca_certs": ca,
        "ssl_cert_reqs": ssl.CERT_NONE if ca is None else ssl.CERT_REQUIRED,
    }


def bridge(app: App, loop: asyncio.AbstractEventLoop) -> App:
    """An ASGI app for another event loop (the one that Serve calls) that runs `app` in `loop`."""

    async def call(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":  # the real app's is run by our own server
            await _lifespan(receive, send)
            return
        here = asyncio.get_running_loop()

        async def receive_from_here() -> MutableMapping[str, Any]:
            return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(receive(), here))

        async def send_here(message: MutableMapping[str, Any]) -> None:
            await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(send(message), here))

        # Cancelling the wrapper (the client went away) cancels the call over there.
        await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(app(scope, receive_from_here, send_here), loop))

    return call


async def _lifespan(receive: Receive, send: Send) -> None:
    while (await receive())["type"] != "lifespan.shutdown":
        await send({"type": "lifespan.startup.complete"})
    await send({"type": "lifespan.shutdown.complete"})
