"""Ray's own autoscaler, with a provider of fake nodes: a replica that finds no room gets a node, and the node goes when it is idle.

Ray's `AutoscalingCluster` needs a file that its wheels lack and stops every Ray of the machine, so the head is started by hand.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import pytest
import yaml

from tests.actors.conftest import free_port
from tests.actors.test_launcher import Running, config  # noqa: F401  (a fixture)

pytestmark = [pytest.mark.cluster, pytest.mark.minutes]

HEAD_ID = "fffffffffffffffffffffffffffffffffffffffffffffffffff00000"
"""The fake provider takes the node with this id for the head."""
EMPTY = (
    *("file_mounts", "auth", "docker", "head_node", "worker_nodes"),
    *("cluster_synced_files", "rsync_exclude", "rsync_filter", "initialization_commands", "setup_commands"),
    *("head_setup_commands", "worker_setup_commands", "head_start_ray_commands", "worker_start_ray_commands"),
)


class FakeCloud:
    """A head node with 1 CPU, and a node of 8 CPUs that Ray's autoscaler starts and ends, as a process of this machine."""

    def __init__(self, folder: Path):
        import ray

        port = free_port()
        # `ray start` takes a token that lies about, who connects to an address does not.
        self.environment = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
        address = f"{ray.util.get_node_ip_address()}:{port}"
        types = {
            "head": {"resources": {"CPU": 1}, "node_config": {}, "max_workers": 0},
            "worker": {"resources": {"CPU": 8}, "node_config": {}, "min_workers": 0, "max_workers": 1},
        }
        settings = {
            "cluster_name": "fake_multinode",
            "max_workers": 1,
            "idle_timeout_minutes": 0.05,
            "upscaling_speed": 1.0,
            "available_node_types": types,
            "head_node_type": "head",
            "file_mounts_sync_continuously": False,
            "provider": {
                "type": "fake_multinode",
                "disable_node_updaters": True,
                "disable_launch_config_check": True,
                "use_node_id_as_ip": True,
                "gcs_address": address,
            },
            **{name: {} if i < 5 else [] for i, name in enumerate(EMPTY)},
        }
        (folder / "autoscaler.json").write_text(json.dumps(settings))
        options = [f"--port={port}", "--num-cpus=1", "--include-dashboard=false", f"--temp-dir={folder}"]
        self._log = folder / "head.log"
        self._head = subprocess.Popen(
            [
                *(sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block"),
                *(*options, f"--object-store-memory={100 * 2**20}", f"--autoscaling-config={folder / 'autoscaler.json'}"),
            ],
            env={
                **os.environ,
                "AUTOSCALER_UPDATE_INTERVAL_S": "1",
                "RAY_FAKE_CLUSTER": "1",
                "RAY_enable_autoscaler_v2": "0",
                "RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD_ID,
                **self.environment,
            },
            stdout=self._log.open("wb"),
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
        self.environment["RAY_ADDRESS"] = address
        self.wait(0)

    def workers(self) -> int:
        """Nodes besides the head; -1 while not even that is there."""
        family = psutil.Process(self._head.pid).children(recursive=True)
        raylets = 0
        for process in family:
            with contextlib.suppress(psutil.Error):
                # A raylet that is starting a worker has for a moment a child of its own name.
                own = process.name() == "raylet" and process.parent().name() != "raylet"
                raylets += own and process.status() != psutil.STATUS_ZOMBIE
        return raylets - 1

    def wait(self, workers: int, seconds: float = 90) -> None:
        limit = time.monotonic() + seconds
        while self.workers() != workers:
            assert self._head.poll() is None and time.monotonic() < limit, self._log.read_text()
            time.sleep(0.2)

    def close(self) -> None:
        """`ray start --block` would drain for half a minute."""
        head = psutil.Process(self._head.pid)
        for process in [*head.children(recursive=True), head]:
            with contextlib.suppress(psutil.Error):
                process.kill()
        self._head.wait(10)


@pytest.fixture
def cloud():
    with tempfile.TemporaryDirectory(
        prefix="r", dir="/tmp", ignore_cleanup_errors=True
    ) as folder:  # short: sockets lie below it
        cloud = FakeCloud(Path(folder))
        yield cloud
        cloud.close()


def test_nodes_come_for_a_pending_replica_and_go_when_idle(config, cloud):  # noqa: F811
    path, port = config({"tp_size": 2}, drain_timeout_s=1)
    document = yaml.safe_load(path.read_text())
    scaling = {"min_replicas": 0, "max_replicas": 1, "downscale_delay_s": 1.0}
    document["models"][0] |= {"num_cpus_per_shard": 3, "autoscaling": scaling, "drain_timeout_s": 1}
    path.write_text(yaml.safe_dump(document))
    running = Running(path, port, cloud.environment)
    try:
        app = running.until_ready()
        assert "waiting for room in the cluster: 6 CPU on one node" in running.log.read_text()
        cloud.wait(1)
        text = app.complete([5, 6, 7], 8)["choices"][0]["text"]
        cloud.wait(0)
        # Asleep: the next request waits for a node, and for a replica on it.
        asked = app.post(
            "/v1/completions", {"prompt": [5, 6, 7], "max_tokens": 8, "temperature": 0, "ignore_eos": True}, timeout=120
        )
        assert asked["choices"][0]["text"] == text
        cloud.wait(1)
        running.process.send_signal(signal.SIGTERM)
        assert running.process.wait(40) == 0, running.log.read_text()
        cloud.wait(0)
    finally:
        with contextlib.suppress(OSError):
            os.killpg(running.process.pid, signal.SIGKILL)
