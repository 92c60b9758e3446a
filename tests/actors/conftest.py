"""A real local Ray, started once, and applications on it that serve a tiny checkpoint."""

from __future__ import annotations

import json
import shutil
import socket
import time
import urllib.error
import urllib.request

import psutil
import pytest

from tests.byte_tokenizer import write_byte_tokenizer


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="session")
def served_checkpoint(tiny_checkpoint, tmp_path_factory):
    """A tiny Llama with a byte-level tokenizer and a chat template."""
    folder = tmp_path_factory.mktemp("served") / "tiny-llama"
    shutil.copytree(tiny_checkpoint("llama", max_position_embeddings=2048), folder)
    write_byte_tokenizer(folder)
    return folder


@pytest.fixture(scope="session")
def other_checkpoint(served_checkpoint):
    """The same model with other weights."""
    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(served_checkpoint, served_checkpoint.with_name("other-llama"))
    tensors = load_file(folder / "model.safetensors")
    save_file({name: tensor.flip(0).contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors")
    return folder


@pytest.fixture(scope="session")
def local_ray():
    """Ray and Serve's proxy on a port of its own, for everything in this folder."""
    import ray
    from ray import serve

    ray.init(
        address="local",
        num_cpus=16,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
        object_store_memory=100 * 2**20,
    )
    port = free_port()
    serve.start(
        proxy_location="HeadOnly",
        http_options={"host": "127.0.0.1", "port": port},
        logging_config={"log_level": "WARNING", "enable_access_log": False},
    )
    yield port
    serve.shutdown()
    ray.shutdown()


class App:
    """A running application: how to talk to it, and what processes it consists of."""

    def __init__(self, name: str, port: int, proxy_url: str):
        self.name, self.url, self.proxy_url = name, f"http://127.0.0.1:{port}", proxy_url

    def get(self, path: str, timeout: float = 10):
        try:
            with urllib.request.urlopen(self.url + path, timeout=timeout) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def post(self, path: str, body: dict, url: str | None = None, timeout: float = 60) -> dict:
        request = urllib.request.Request(
            (url or self.url) + path, json.dumps(body).encode(), {"Content-Type": "application/json"}, method="POST"
        )
        with urllib.request.urlopen(request, timeout=timeout) as answer:
            return json.loads(answer.read())

    def complete(self, prompt, max_tokens=16, url=None, **settings) -> dict:
        return self.post("/v1/completions", _body(prompt, max_tokens, settings), url)

    def stream(self, prompt, max_tokens=16, url=None, **settings) -> Stream:
        return Stream((url or self.url) + "/v1/completions", prompt, max_tokens, settings)

    def ready(self) -> bool:
        try:
            return self.get("/ready", 2)[0] == 200
        except OSError:
            return False

    def wait_ready(self, seconds: float = 90) -> None:
        limit = time.monotonic() + seconds
        while not self.ready():
            assert time.monotonic() < limit, "the application is not ready"
            time.sleep(0.05)

    def status(self):
        import msgspec
        import ray

        from raysgl.actors import coordinator

        while True:
            try:
                status = ray.get(coordinator.connect(self.name).status.remote())
                return msgspec.msgpack.decode(status, type=coordinator.Status)
            except ray.exceptions.RayError:  # it is restarting
                time.sleep(0.1)

    def wait_serving(self, replicas: int, model: str = "tiny", seconds: float = 90) -> None:
        """Until the coordinator knows so many replicas."""
        limit = time.monotonic() + seconds
        while len(self.status().serving.get(model, ())) != replicas:
            assert time.monotonic() < limit, self.status()
            time.sleep(0.05)
        self.wait_ready()

    def idle(self, seconds: float = 10) -> bool:
        """Whether the engines come to rest within so many seconds."""
        limit = time.monotonic() + seconds
        while time.monotonic() < limit:
            if self.running() == 0:
                return True
            time.sleep(0.02)
        return False

    def index_is_exact(self, views: int = 3, seconds: float = 20) -> bool:
        """Whether GET /debug/index soon finds nothing busy, and everything equal, in so many views: coordinator and ingresses."""
        limit = time.monotonic() + seconds
        while True:
            status, body = self.get("/debug/index", 60)
            found = json.loads(body)
            assert status == 200 and found["status"] != "different", body
            seen = [replica.get("views", {}) for replica in found["replicas"].values()]
            if found["status"] == "equal" and seen and all(len(names) == views for names in seen):
                return True
            assert time.monotonic() < limit, body

    def running(self) -> int:
        """Sequences that the replicas say are running."""
        import ray

        from raysgl.actors import coordinator

        handle = coordinator.connect(self.name)
        loads = ray.get(handle.loads.remote())
        return sum(load["running"] + load["waiting"] for replicas in loads.values() for load in replicas.values())


def _body(prompt, max_tokens, settings) -> dict:
    """A greedy completion that does not end early."""
    greedy = {"temperature": 0, "ignore_eos": True}
    return {"model": "tiny", "prompt": prompt, "max_tokens": max_tokens, **greedy, **settings}


class Stream:
    """An SSE stream read step by step."""

    def __init__(self, url, prompt, max_tokens, settings):
        body = _body(prompt, max_tokens, {"stream": True, **settings})
        request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"}, method="POST")
        self.answer = urllib.request.urlopen(request, timeout=60)
        self.texts: dict[int, str] = {}
        self.finish: dict[int, str] = {}
        self.chunks = 0

    def read(self, chunks: int | None = None) -> Stream:
        """So many chunks more, or to the end."""
        stop_at = None if chunks is None else self.chunks + chunks
        while stop_at is None or self.chunks < stop_at:
            line = self.answer.readline().decode().strip()
            if line == "data: [DONE]":
                return self
            if not line.startswith("data: "):
                assert line == "", f"the stream ended in its middle: {line!r}"
                assert not self.answer.isclosed(), "the stream was cut"
                continue
            self.chunks += 1
            event = json.loads(line[6:])
            assert "error" not in event, event
            for choice in event["choices"]:
                index = choice["index"]
                self.texts[index] = self.texts.get(index, "") + choice["text"]
                if choice["finish_reason"]:
                    self.finish[index] = choice["finish_reason"]
        return self

    def close(self) -> None:
        self.answer.close()


@pytest.fixture(scope="module")
def launch(local_ray, served_checkpoint):
    """launch(name, {model name: {engine settings, or "num_replicas", or "autoscaling"}}, server settings) -> `App`; deleted at the
    module's end."""
    from ray import serve

    from raysgl.actors import coordinator
    from raysgl.app import build
    from raysgl.config import AppConfig

    names = []

    def make(name: str, models: dict[str, dict], **server) -> App:
        port = free_port()
        config = {"server": {"port": port, "drain_timeout_s": 20, **server}, "models": []}
        for model, settings in models.items():
            replicas, autoscaling = settings.pop("num_replicas", 1), settings.pop("autoscaling", None)
            engine = {
                "model_path": str(served_checkpoint),
                "served_model_name": model,
                "device": "cpu",
                "max_total_tokens": 8192,
                "cpu_threads": 1,
                **settings,
            }
            config["models"].append(
                {
                    "engine": engine,
                    "num_replicas": replicas,
                    "num_cpus_per_shard": 0.1,
                    "drain_timeout_s": 20,
                    "autoscaling": autoscaling,
                }
            )
        names.append(name)
        serve.run(build(AppConfig.model_validate(config)), name=name, route_prefix=f"/{name}")
        app = App(name, port, f"http://127.0.0.1:{local_ray}/{name}")
        app.wait_ready()
        return app

    yield make
    for name in names:
        serve.delete(name)
        coordinator.kill(name)


def processes(title: str) -> list[psutil.Process]:
    """Ray workers of this test run whose process title begins so."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            command = process.cmdline()
        except psutil.Error:
            continue
        if command and command[0].startswith(title) and process.status() != psutil.STATUS_ZOMBIE:
            found.append(process)
    return found
