"""`raysgl serve` as a user meets it: a process, its exit code, and what it leaves behind."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import psutil
import pytest
import yaml

from tests.actors.conftest import App, free_port

pytestmark = pytest.mark.cluster


@pytest.fixture
def config(tmp_path, served_checkpoint):
    """config(engine settings, **server settings) -> path, port."""

    def write(engine: dict | None = None, **server):
        port = server.setdefault("port", free_port())
        settings = {
            "model_path": str(served_checkpoint),
            "served_model_name": "tiny",
            "device": "cpu",
            "max_total_tokens": 8192,
        }
        path = tmp_path / "config.yaml"
        document = {"server": server, "models": [{"engine": settings | (engine or {}), "num_cpus_per_shard": 0.1}]}
        path.write_text(yaml.safe_dump(document))
        return path, port

    return write


def command(path) -> list[str]:
    return [sys.executable, "-m", "raysgl.cli", "serve", str(path)]


def fails(path) -> str:
    """The one thing it says, having failed."""
    done = subprocess.run(command(path), capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1, done
    said = [line for line in done.stderr.splitlines() if line.startswith("raysgl: ")]
    assert "Traceback" not in done.stderr
    return said[-1]


def test_a_bad_setting_is_named(config):
    path, _ = config({"page_sizes": 16})
    assert "page_sizes" in fails(path)


def test_a_model_that_does_not_exist(config):
    path, _ = config({"model_path": "/no/such/model"})
    assert "'/no/such/model' does not exist" in fails(path)


def test_a_port_that_is_taken(config):
    with socket.create_server(("127.0.0.1", 0)) as other:
        path, _ = config(port=other.getsockname()[1])
        assert "is taken" in fails(path)


def test_an_address_that_is_not_ours(config):
    path, _ = config(host="192.0.2.1")
    assert "cannot listen on 192.0.2.1" in fails(path)


def test_what_serve_run_alone_would_apply_is_refused(config):
    path, _ = config()
    document = {
        "applications": [{"import_path": "raysgl.app:build", "args": yaml.safe_load(path.read_text()), "deployments": []}]
    }
    path.write_text(yaml.safe_dump(document))
    assert "applications.0.deployments: raysgl serve does not apply it" in fails(path)


@pytest.mark.slow
def test_weights_that_cannot_be_read_are_a_sentence(config, served_checkpoint, tmp_path):
    """Found only when the shards load, after Ray has started."""
    broken = tmp_path / "broken"
    shutil.copytree(served_checkpoint, broken)
    (broken / "model.safetensors").write_bytes(b"\0" * 100)
    path, _ = config({"model_path": str(broken)})
    assert "model tiny cannot start: " in fails(path)


class Running:
    """A launcher in the background of a script: SIGINT ignored, no terminal."""

    def __init__(self, path, port, environment=None):
        self.log = Path(str(path) + ".log")
        self.process = subprocess.Popen(
            ["sh", "-c", "trap '' INT; exec \"$@\"", "sh", *command(path)],
            stdout=self.log.open("wb"),
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env={**os.environ, **(environment or {})},
            start_new_session=True,
        )
        self.app = App("raysgl", port, "")

    def until_ready(self) -> App:
        limit = time.monotonic() + 120
        while "raysgl is ready" not in self.log.read_text():
            assert self.process.poll() is None and time.monotonic() < limit, self.log.read_text()
            time.sleep(0.05)
        self.family = psutil.Process(self.process.pid).children(recursive=True)
        return self.app

    def left_behind(self, seconds=10) -> list[psutil.Process]:
        _, alive = psutil.wait_procs(self.family, timeout=seconds)
        return [process for process in alive if process.status() != psutil.STATUS_ZOMBIE]


@pytest.mark.slow
def test_a_life_in_the_background_after_a_crash(config):
    """A Ray that crashed left its address behind; SIGINT was ignored by the shell; a stream runs while it is stopped."""
    path, port = config(drain_timeout_s=20)
    with tempfile.TemporaryDirectory(prefix="r", dir="/tmp") as temporary:  # short: Ray makes Unix sockets below it
        stale = Path(temporary, "ray", "ray_current_cluster")
        stale.parent.mkdir()
        stale.write_text("127.0.0.1:1")
        running = Running(path, port, {"RAY_TMPDIR": temporary})
        app = running.until_ready()
        block = running.log.read_text()
        assert f"http://127.0.0.1:{port}/v1" in block and "8,192 tokens" in block and "curl" in block and "cpu" in block
        whole = app.complete([5, 6, 7], 1500)["choices"][0]["text"]
        stream = app.stream([5, 6, 7], 1500)
        stream.read(3)
        running.process.send_signal(signal.SIGINT)
        assert stream.read().texts[0] == whole
        assert running.process.wait(40) == 0, running.log.read_text()
        assert not running.left_behind()
    assert "Traceback" not in running.log.read_text()


@pytest.mark.slow
def test_a_signal_to_the_whole_group_lets_answers_finish(config):
    """As Ctrl-C and `timeout` send it; make sends it once more at once."""
    path, port = config(drain_timeout_s=20)
    running = Running(path, port)
    app = running.until_ready()
    whole = app.complete([5, 6, 7], 1500)["choices"][0]["text"]
    stream = app.stream([5, 6, 7], 1500)
    stream.read(3)
    os.killpg(running.process.pid, signal.SIGTERM)
    running.process.send_signal(signal.SIGTERM)
    assert stream.read().texts[0] == whole
    assert running.process.wait(40) == 0, running.log.read_text()
    assert not running.left_behind(seconds=0)


@pytest.mark.slow
@pytest.mark.parametrize("who", ["supervisor", "raylet"])
def test_what_dies_takes_the_rest_along(config, who):
    path, port = config()
    running = Running(path, port)
    running.until_ready()
    launcher = psutil.Process(running.process.pid).children()[0]
    raylet = next(child for child in launcher.children() if child.name() == "raylet")
    {"supervisor": psutil.Process(running.process.pid), "launcher": launcher, "raylet": raylet}[who].kill()
    assert running.process.wait(40) != 0
    assert not running.left_behind(seconds=30)


@pytest.mark.slow
def test_a_second_signal_ends_it_at_once(config):
    path, port = config(drain_timeout_s=60)
    running = Running(path, port)
    app = running.until_ready()

    def read():
        with contextlib.suppress(Exception):
            while True:
                app.stream([5, 6, 7], 2000).read()

    threading.Thread(target=read, daemon=True).start()
    time.sleep(0.5)
    running.process.send_signal(signal.SIGTERM)
    time.sleep(1.2)  # sooner would count as the same signal
    running.process.send_signal(signal.SIGTERM)
    running.process.wait(10)
    assert not running.left_behind()


HEARS_SIGINT = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.SIG_DFL)
os.execv(sys.argv[1], sys.argv[1:])
"""
"""Runs a command. Tests that run in the background of a script ignore SIGINT, and what they start inherits that."""


@pytest.mark.slow
def test_serve_run_does_the_same_job(config, tmp_path):
    """Ray Serve's own command on the same file; it needs `applications:` around it."""
    path, port = config()
    document = {
        "proxy_location": "Disabled",
        "logging_config": {"log_level": "WARNING", "enable_access_log": False},
        "applications": [
            {"name": "raysgl", "import_path": "raysgl.app:build", "route_prefix": "/", "args": yaml.safe_load(path.read_text())}
        ],
    }
    path.write_text(yaml.safe_dump(document))
    process = subprocess.Popen(
        [sys.executable, "-c", HEARS_SIGINT, str(Path(sys.executable).with_name("serve")), "run", str(path)],
        stdout=(tmp_path / "log").open("wb"),
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        start_new_session=True,
        cwd=tmp_path,
    )
    me = psutil.Process(process.pid)
    try:
        app = App("raysgl", port, "")
        limit = time.monotonic() + 120
        while not app.ready():
            assert process.poll() is None and time.monotonic() < limit, (tmp_path / "log").read_text()
            time.sleep(0.1)
        assert app.complete([5, 6, 7], 8)["usage"]["completion_tokens"] == 8
        family = me.children(recursive=True)
        process.send_signal(signal.SIGINT)
        process.wait(30)
        _, alive = psutil.wait_procs(family, timeout=10)
        assert not [member for member in alive if member.status() != psutil.STATUS_ZOMBIE]
    finally:
        if me.is_running():
            for member in [*me.children(recursive=True), me]:
                with contextlib.suppress(psutil.Error):
                    member.kill()


@pytest.mark.slow
def test_a_cluster_without_room_is_waited_for_in_words(config):
    """As with an autoscaler: the replica's placement group is pending until a node comes that fits it."""
    from ray.cluster_utils import Cluster

    path, _ = config(drain_timeout_s=1)
    document = yaml.safe_load(path.read_text())
    document["models"][0] |= {"num_cpus_per_shard": 3, "drain_timeout_s": 1}
    path.write_text(yaml.safe_dump(document))
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        running = Running(path, 0, {"RAY_ADDRESS": cluster.address})
        limit = time.monotonic() + 60
        while "waiting for room in the cluster: 3 CPU on one node" not in running.log.read_text():
            assert running.process.poll() is None and time.monotonic() < limit, running.log.read_text()
            time.sleep(0.1)
        cluster.add_node(num_cpus=4)
        running.until_ready()
        running.process.send_signal(signal.SIGTERM)
        assert running.process.wait(40) == 0, running.log.read_text()
    finally:
        cluster.shutdown()
