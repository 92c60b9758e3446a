"""The ingress's end of the wire, inside its asyncio loop: one PULL socket for all tokens, one PUSH socket per engine. No Ray."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable

import msgspec
import zmq

from raysgl.actors.frames import FromEngine, FromIngress
from raysgl.actors.transport import Endpoint, Transport
from raysgl.messages import Hello, ToEngine

log = logging.getLogger(__name__)

BURST = 64
"""Messages taken in before other tasks of the loop get a turn."""
RETRY_S = 0.002
"""While an engine takes nothing (it is being connected to, or dead and not yet known to be), how often it is tried."""


class OutputReader:
    """Hands every frame from the engines to `on_frame`, in the loop that made this reader."""

    def __init__(self, transport: Transport, on_frame: Callable[[FromEngine], None]):
        self._socket, self.endpoint = transport.bind(zmq.PULL)
        self._on_frame = on_frame
        self._decode = msgspec.msgpack.Decoder(FromEngine).decode
        self._loop = asyncio.get_running_loop()
        self._fd = self._socket.FD
        self._closed = False
        # ZeroMQ's descriptor is edge triggered: it is readable once, so each wake-up reads until there is nothing left.
        self._loop.add_reader(self._fd, self._drain)
        self._loop.call_soon(self._drain)

    def _drain(self) -> None:
        for _ in range(BURST):
            if self._closed:
                return
            try:
                frame = self._socket.recv(zmq.NOBLOCK)
            except zmq.Again:
                return
            try:
                self._on_frame(self._decode(frame))
            except msgspec.DecodeError:
                log.exception("reader: a message that is not ours")
            except Exception:
                log.exception("reader: an output could not be delivered")
        self._loop.call_soon(self._drain)

    def close(self) -> None:
        self._closed = True
        self._loop.remove_reader(self._fd)
        self._socket.close(0)


class EngineConnection:
    """Sends to one engine. What is sent within one turn of the loop goes out as one frame. A `hello` goes first."""

    def __init__(self, transport: Transport, engine: Endpoint, hello: Hello):
        self._socket = transport.connect(zmq.PUSH, engine)
        self._ingress = hello.ingress
        self._number = 0
        self._encode = msgspec.msgpack.Encoder().encode
        self._loop = asyncio.get_running_loop()
        self._batch: list[ToEngine] = []
        self._frames: deque[bytes] = deque()
        self._scheduled = False
        self._closed = False
        self.send(hello)

    def send(self, message: ToEngine) -> None:
        """Queue a message. Never blocks, never fails: that an engine is dead is learned from its lifeline."""
        self._batch.append(message)
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._scheduled = False
        if self._closed:
            return
        if self._batch:
            self._frames.append(self._encode(FromIngress(self._ingress, self._number, self._batch)))
            self._number += 1
            self._batch = []
        try:
            while self._frames:
                self._socket.send(self._frames[0], zmq.NOBLOCK)
                self._frames.popleft()
        except zmq.Again:  # still connecting, or too many messages under way
            self._scheduled = True
            self._loop.call_later(RETRY_S, self._flush)

    def close(self) -> None:
        self._closed = True
        self._socket.close(0)
