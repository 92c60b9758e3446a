"""The listener: TLS, client certificates, heads that are too large or too slow."""

from __future__ import annotations

import asyncio
import datetime
import ipaddress
import ssl
import sys
from asyncio.subprocess import PIPE

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from raysgl.actors import http, http_guard
from raysgl.actors.http import HttpServer, listening_socket
from raysgl.config import ServerConfig, explain
from raysgl.launcher import answers


async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        return
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})


class Listener:
    """async with Listener(**settings) as port."""

    def __init__(self, **settings: object):
        self._settings = ServerConfig(**settings)

    async def __aenter__(self) -> int:
        sock = listening_socket("127.0.0.1", 0)
        self._server = HttpServer(app, sock, 1, self._settings)
        await self._server.started()
        return sock.getsockname()[1]

    async def __aexit__(self, *exc_info: object) -> None:
        await self._server.drain()


def certificate(name: str, issuer=None):
    """(certificate, key), signed by `issuer`'s or by itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    signer, signing_key = issuer or (None, key)
    now = datetime.datetime.now(datetime.UTC)
    names = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    builder = (
        x509.CertificateBuilder(signer.subject if signer else subject, subject, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=issuer is None, path_length=None), critical=True)
        .add_extension(names, critical=False)
    )
    return builder.sign(signing_key, hashes.SHA256()), key


def write(folder, name: str, pair, password: bytes | None = None) -> tuple[str, str]:
    cert, key = pair
    secret = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    (folder / f"{name}.crt").write_bytes(cert.public_bytes(serialization.Encoding.PEM))
    form = serialization.PrivateFormat.PKCS8
    (folder / f"{name}.key").write_bytes(key.private_bytes(serialization.Encoding.PEM, form, secret))
    return str(folder / f"{name}.crt"), str(folder / f"{name}.key")


async def get(port: int, context: ssl.SSLContext) -> httpx.Response:
    async with httpx.AsyncClient(verify=context) as client:
        return await client.get(f"https://127.0.0.1:{port}/")


async def test_tls_and_client_certificates(tmp_path):
    ca = certificate("ca")
    ca_file, _ = write(tmp_path, "ca", ca)
    cert, key = write(tmp_path, "server", certificate("server", ca), b"hush")
    mine = write(tmp_path, "client", certificate("client", ca))
    settings = {"ssl_certfile": cert, "ssl_keyfile": key, "ssl_keyfile_password": "hush"}
    plain = ssl.create_default_context(cafile=ca_file)
    async with Listener(**settings) as port:
        assert (await get(port, plain)).text == "ok"
        assert not await asyncio.to_thread(answers, ServerConfig(port=port))
        async with httpx.AsyncClient() as client:
            with pytest.raises(httpx.HTTPError):
                await client.get(f"http://127.0.0.1:{port}/")
            with pytest.raises(httpx.ConnectError):
                await client.get(f"https://127.0.0.1:{port}/")
        assert await asyncio.to_thread(answers, ServerConfig(port=port, **settings))
    assert not await asyncio.to_thread(answers, ServerConfig(port=port, **settings))
    async with Listener(**settings, ssl_ca_certs=ca_file) as port:
        assert await asyncio.to_thread(answers, ServerConfig(port=port, ssl_ca_certs=ca_file, **settings))
        with pytest.raises(httpx.HTTPError):
            await get(port, plain)
        known = ssl.create_default_context(cafile=ca_file)
        known.load_cert_chain(*mine)
        assert (await get(port, known)).text == "ok"


async def test_a_bad_certificate_is_an_error_at_the_start(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"ssl_certfile: .*none\.pem"):
        async with Listener(ssl_certfile=str(tmp_path / "none.pem")):
            pass


def test_tls_settings_that_contradict():
    with pytest.raises(ValueError, match="ssl_keyfile needs ssl_certfile"):
        ServerConfig(ssl_keyfile="x")
    with pytest.raises(ValueError) as error:
        ServerConfig(ssl_keyfile_password=["hush"], api_key=12345)
    assert "hush" not in explain(error.value, ServerConfig)
    assert "12345" not in explain(error.value, ServerConfig)


async def talk(port: int, *parts: bytes) -> bytes:
    """What comes back for these bytes until the server closes, or a whole answer."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        for part in parts:
            writer.write(part)
            await writer.drain()
        head = await reader.readuntil(b"\r\n\r\n")
        return head + (await reader.read(1000))
    except (ConnectionError, asyncio.IncompleteReadError):
        return b"closed"
    finally:
        writer.close()


async def test_heads_are_limited():
    async with Listener(max_header_bytes=2048) as port:
        get = b"GET / HTTP/1.1\r\nhost: a\r\n"
        assert (await talk(port, get + b"a: " + b"x" * 1000 + b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
        answer = await talk(port, get + b"a: " + b"x" * 3000)
        assert answer.startswith(b"HTTP/1.1 431")
        assert b'"error"' in answer
        assert b"connection: close" in answer
        assert (await talk(port, b"GET /" + b"x" * 3000)).startswith(b"HTTP/1.1 431")
        small = get + b"".join(b"h%d: %s\r\n" % (i, b"x" * 10) for i in range(500))
        assert (await talk(port, *[small[i : i + 100] for i in range(0, len(small), 100)])).startswith(
            (b"HTTP/1.1 431", b"closed")
        )
        body = b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 9000\r\n\r\n" + b"x" * 9000
        assert (await talk(port, body)).startswith(b"HTTP/1.1 200")


async def test_a_connection_is_used_again():
    async with Listener(max_header_bytes=2048) as port, httpx.AsyncClient() as client:
        for _ in range(50):
            assert (await client.get(f"http://127.0.0.1:{port}/", headers={"a": "x" * 500})).text == "ok"


@pytest.mark.parametrize("sent", [b"", b"GET / HTTP/1.1\r\nhost:"])
async def test_heads_that_do_not_end(monkeypatch, sent):
    monkeypatch.setattr(http_guard, "HEAD_TIMEOUT_S", 0.05)
    async with Listener() as port:
        assert (await talk(port, sent)).startswith(b"HTTP/1.1 408")


@pytest.mark.parametrize("keep_alive", [True, False])
async def test_one_of_two_listeners_leaves_and_nobody_notices(monkeypatch, keep_alive):
    """Under load: the connections that clients keep, and those that come at the wrong moment, end well."""
    monkeypatch.setattr(http, "LEAVE_S", 0.3)
    first = listening_socket("127.0.0.1", 0)
    port = first.getsockname()[1]
    settings = ServerConfig()
    going, staying = HttpServer(app, first, 1, settings), HttpServer(app, listening_socket("127.0.0.1", port), 1, settings)
    await going.started()
    await staying.started()
    stop, got = asyncio.Event(), []
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None if keep_alive else 0)

    async def ask(client) -> None:
        while not stop.is_set():
            got.append(await client.get(f"http://127.0.0.1:{port}/"))

    async with httpx.AsyncClient(limits=limits, timeout=20) as client, asyncio.TaskGroup() as group:
        for _ in range(16):
            group.create_task(ask(client))
        while len(got) < 60:
            await asyncio.sleep(0.01)
        await going.leave()
        await going.drain()
        more = len(got) + 60
        while len(got) < more:
            await asyncio.sleep(0.01)
        stop.set()
    assert {answer.text for answer in got} == {"ok"}
    assert sum(answer.headers.get("connection") == "close" for answer in got) > 0 or not keep_alive
    await staying.drain()


async def test_others_that_listen_are_those_of_other_processes():
    with listening_socket("127.0.0.1", 0) as mine:
        mine.listen()
        port = mine.getsockname()[1]
        assert not http.others_listen(port)
        script = f"from raysgl.actors.http import listening_socket as s; x = s('127.0.0.1', {port}); x.listen(); print(flush=True); input()"
        other = await asyncio.create_subprocess_exec(sys.executable, "-c", script, stdin=PIPE, stdout=PIPE)
        await other.stdout.readline()
        assert http.others_listen(port)
        other.kill()
        await other.wait()
        assert not http.others_listen(port)
