"""A Ray cluster of fake nodes on this machine, and an application on it that serves a tiny model."""

from __future__ import annotations

import contextlib
import logging
import shutil
import socket
import time
from pathlib import Path
from typing import Self

import httpx
import msgspec
import psutil

from raysgl.config import AppConfig
from tests.byte_tokenizer import write_byte_tokenizer

NAME, MODEL = "cluster", "tiny"
WORKERS = 3
CPUS = 2
"""Of a worker: room for two replicas, so that one node's can go to another."""


def checkpoint(folder: Path) -> Path:
    """A tiny random Llama with a tokenizer of single bytes. It is served in float64: no two batches then disagree about an argmax."""
    import torch
    import transformers

    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=256,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=4096,
        bos_token_id=1,
        eos_token_id=2,
    )
    transformers.LlamaForCausalLM(config).float().eval().save_pretrained(folder)
    write_byte_tokenizer(folder)
    return folder


HANG_S = 12.0
STEADY_S = 2.0
GONE = (psutil.STATUS_ZOMBIE, psutil.STATUS_STOPPED)


class FakeCluster:
    """A head node without CPUs and `WORKERS` nodes; use it as a context manager. tp_size: shards of a replica."""

    def __init__(self, folder: Path, tp_size: int = 1):
        self._tp_size = tp_size
        self._model_path = checkpoint(folder / "model")
        self._folder = folder
        self.port = _free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.replicas = 0

    def __enter__(self) -> Self:
        import ray
        from ray import serve
        from ray.cluster_utils import Cluster

        logging.getLogger("ray").setLevel(logging.ERROR)
        self._cluster = Cluster(
            initialize_head=True,
            head_node_args={"num_cpus": 0, "include_dashboard": False, "object_store_memory": 100 * 2**20},
        )
        self.workers = [self.add_node() for _ in range(WORKERS)]
        ray.init(address=self._cluster.address, log_to_driver=False, logging_level="ERROR")
        serve.start(
            proxy_location="Disabled",
            logging_config={"log_level": "WARNING", "enable_access_log": False},
        )
        return self

    def __exit__(self, *error: object) -> None:
        import ray
        from ray import serve

        from raysgl.actors import coordinator

        everything = psutil.Process().children(recursive=True)
        try:
            serve.delete(NAME)
            coordinator.kill(NAME)
            serve.shutdown()
        finally:
            ray.shutdown()
            self._cluster.shutdown()
            for process in everything:  # what was stopped, or lost its node, has heard of none of this
                with contextlib.suppress(psutil.Error):
                    process.kill()
            shutil.rmtree(self._folder, ignore_errors=True)

    # ---------------------------------------------------------------- nodes

    def add_node(self):
        return self._cluster.add_node(num_cpus=CPUS, object_store_memory=100 * 2**20)

    def crash_node(self, index: int) -> None:
        """kill -9 of a worker's raylet and of all that runs under it; they are dead when this returns."""
        node = self.workers.pop(index)
        (raylet,) = node.all_processes["raylet"]
        under = psutil.Process(raylet.process.pid).children(recursive=True)
        self._cluster.remove_node(node, allow_graceful=False)
        for process in under:
            with contextlib.suppress(psutil.Error):
                process.kill()
        psutil.wait_procs(under, timeout=10)

    # ---------------------------------------------------------------- the application

    def deploy(self, replicas: int = 3, ingresses: int = 2, engine: dict | None = None, **model) -> None:
        """(Re)deploy, and wait until Serve is content."""
        from ray import serve

        from raysgl.app import build

        self.replicas = replicas
        config = {
            "server": {"port": self.port, "num_ingress": ingresses, "drain_timeout_s": 60},
            "models": [
                {
                    "engine": {
                        "model_path": str(self._model_path),
                        "served_model_name": MODEL,
                        "device": "cpu",
                        "dtype": "float64",
                        "max_total_tokens": 32768,
                        "cpu_threads": 1,
                        "tp_size": self._tp_size,
                        **(engine or {}),
                    },
                    "num_replicas": replicas,
                    "num_cpus_per_shard": 1 / self._tp_size,
                    "drain_timeout_s": 60,
                    "hang_timeout_s": HANG_S,
                    **model,
                }
            ],
        }
        serve.run(build(AppConfig.model_validate(config)), name=NAME, route_prefix="/")
        self._wait_ready()

    def _wait_ready(self) -> None:
        limit = time.monotonic() + 60
        while time.monotonic() < limit:
            with contextlib.suppress(httpx.HTTPError):
                if httpx.get(self.url + "/ready", timeout=2).status_code == 200:
                    return
            time.sleep(0.1)
        raise AssertionError("the application does not become ready")

    def whole(self) -> bool:
        """Whether all replicas serve, as the coordinator knows them, Serve does, and there are processes."""
        import ray
        from ray import serve

        from raysgl.actors import coordinator

        try:
            status = ray.get(coordinator.connect(NAME).status.remote(), timeout=5)
        except ray.exceptions.RayError:
            return False
        serving = msgspec.msgpack.decode(status, type=coordinator.Status).serving.get(MODEL, ())
        application = serve.status().applications[NAME]
        shards = len(self.shards()) / self._tp_size
        return len(serving) == shards == self.replicas and application.status == "RUNNING"

    def wait_whole(self, seconds: float = 200) -> float:
        """Until it has been whole for a while: not everybody notices a loss at once. Returns time.monotonic() of when it became so."""
        limit, since = time.monotonic() + seconds, 0.0
        while not since or time.monotonic() < since + STEADY_S:
            since = (since or time.monotonic()) if self.whole() else 0.0
            assert time.monotonic() < limit, "the application does not become whole again"
            time.sleep(0.1)
        return since

    def loads(self) -> dict[str, dict[str, float]]:
        """replica -> `Load`."""
        import ray

        from raysgl.actors import coordinator

        return ray.get(coordinator.connect(NAME).loads.remote(), timeout=10).get(MODEL, {})

    def check_at_rest(self, seconds: float = 15) -> None:
        """Nothing runs or waits, and every page is free or cached."""
        limit = time.monotonic() + seconds
        while True:
            loads = self.loads()
            leaks = [
                f"{name}: {load['running']} running, {load['waiting']} waiting, "
                f"{load['free_pages']} free + {load['cached_pages']} cached of {load['total_pages']} pages"
                for name, load in loads.items()
                if load["running"] or load["waiting"] or load["free_pages"] + load["cached_pages"] != load["total_pages"]
            ]
            if len(loads) == self.replicas and not leaks:
                return
            assert time.monotonic() < limit, leaks or f"{len(loads)} replicas report"
            time.sleep(0.1)

    # ---------------------------------------------------------------- processes

    def shards(self) -> list[psutil.Process]:
        return _processes("ray::ModelShard")

    def replica_actors(self) -> list[psutil.Process]:
        return _processes(f"ray::ServeReplica:{NAME}:Engine")

    def ingresses(self) -> list[psutil.Process]:
        return _processes(f"ray::ServeReplica:{NAME}:Ingress")

    def coordinator(self) -> psutil.Process:
        (process,) = _processes("ray::CacheCoordinator")
        return process

    def node_of(self, process: psutil.Process) -> int | None:
        """The index of the worker that it runs on; None for the head."""
        above = {parent.pid for parent in process.parents()}
        for index, node in enumerate(self.workers):
            (raylet,) = node.all_processes["raylet"]
            if raylet.process.pid in above:
                return index
        return None


def _processes(title: str) -> list[psutil.Process]:
    """Of this cluster, whose title begins so, and that can do anything."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            command = process.cmdline()
        except psutil.Error:
            continue
        if command and command[0].startswith(title) and process.status() not in GONE:
            found.append(process)
    return found


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
