"""ZeroMQ sockets between the processes of one application: encrypted, and open to nobody else.

Whoever binds has a CURVE key pair of its own and listens on its node's address at a random port. Whoever connects shows the
application's client key, which the coordinator hands out through Ray; every other key is turned away before a byte of it is
decoded. What travels is msgpack (`raysgl.messages`), never a pickle.
"""

from __future__ import annotations

import ipaddress

import msgspec
import zmq
import zmq.auth.thread

HIGH_WATER = 1000
"""Messages queued for a peer before sending to it fails: tens of seconds of steps, so only a stuck peer gets there."""
ZAP_DOMAIN = "raysgl"


class KeyPair(msgspec.Struct, array_like=True, frozen=True):
    """A CURVE key pair, Z85 encoded."""

    public: bytes
    secret: bytes

    @classmethod
    def new(cls) -> KeyPair:
        return cls(*zmq.curve_keypair())


class Endpoint(msgspec.Struct, array_like=True, frozen=True):
    """Where a socket listens (tcp://ip:port) and the key that proves it is the right one."""

    address: str
    public_key: bytes


class _OnlyClient:
    """ZAP credentials: admits exactly one key."""

    def __init__(self, public: bytes):
        self._public = public

    def callback(self, domain: str, key: bytes) -> bool:
        return key == self._public


class Transport:
    """This process's sockets. `host` is the node's IP, `client` the application's client key pair.

    Sockets belong to the thread that uses them; `bind` and `connect` may be called from any thread.
    """

    def __init__(self, host: str, client: KeyPair):
        self.host = host
        self._client = client
        self._own = KeyPair.new()
        self._context = zmq.Context()
        self._authenticator = zmq.auth.thread.ThreadAuthenticator(self._context)
        self._authenticator.start()
        self._authenticator.configure_curve_callback(domain=ZAP_DOMAIN, credentials_provider=_OnlyClient(client.public))

    def bind(self, kind: int, high_water: int = HIGH_WATER) -> tuple[zmq.Socket, Endpoint]:
        """A listening socket (zmq.PULL, zmq.PUB, ...) and what peers need to reach it."""
        socket = self._socket(kind, high_water)
        socket.curve_server = 1
        socket.curve_publickey = self._own.public
        socket.curve_secretkey = self._own.secret
        socket.zap_domain = ZAP_DOMAIN.encode()
        socket.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)  # without it a dead authenticator thread would let everybody in
        port = socket.bind_to_random_port(f"tcp://{_bracketed(self.host)}")
        return socket, Endpoint(f"tcp://{_bracketed(self.host)}:{port}", self._own.public)

    def connect(self, kind: int, endpoint: Endpoint, high_water: int = HIGH_WATER) -> zmq.Socket:
        """A socket that connects in the background. Until it has, `zmq.PUSH` raises `zmq.Again` (IMMEDIATE)."""
        socket = self._socket(kind, high_water)
        socket.curve_publickey = self._client.public
        socket.curve_secretkey = self._client.secret
        socket.curve_serverkey = endpoint.public_key
        if kind == zmq.PUSH:
            socket.setsockopt(zmq.IMMEDIATE, 1)
        socket.connect(endpoint.address)
        return socket

    def close(self) -> None:
        """Close everything, dropping what was not sent. No other thread may be using a socket."""
        self._authenticator.stop()
        self._context.destroy(linger=0)

    def _socket(self, kind: int, high_water: int) -> zmq.Socket:
        socket = self._context.socket(kind)
        socket.linger = 0
        socket.sndhwm = socket.rcvhwm = high_water
        socket.ipv6 = ":" in self.host
        return socket


def _bracketed(host: str) -> str:
    try:
        return f"[{host}]" if ipaddress.ip_address(host).version == 6 else host
    except ValueError:
        return host
