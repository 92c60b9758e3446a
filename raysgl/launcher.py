"""`raysgl serve CONFIG`: the same application as `serve run CONFIG`, with what that lacks.

It checks everything before anything starts, says what it is doing while models load, exits non-zero with the reason when they
cannot be served, and on SIGTERM or SIGINT lets answers finish and stops all it has started. (`serve run` never exits when a
deployment fails, dies ungracefully on SIGTERM, and cannot be interrupted in the background of a script.)
"""

from __future__ import annotations

import contextlib
import http.client
import logging
import os
import signal
import ssl
import sys
import threading
import time
from pathlib import Path
from typing import Self

import psutil

from raysgl import check, ready
from raysgl.config import AppConfig, ServerConfig
from raysgl.config_file import ConfigError, load, read
from raysgl.startup import StartupClock
from raysgl.supervisor import supervised

POLL_S = 0.1
STATUS_EVERY_S = 1.0
PLACED_WITHIN_S = 3.0
"""Replicas that have a place have it by then; later it is worth asking what they wait for."""
STOP_LIMIT_S = 15.0
"""How long stopping may take beyond the drain time."""
RAY_ITSELF = ("gcs_server", "raylet")
"""The processes of a local Ray without which there is none."""
OBJECT_STORE_BYTES = 128 * 2**20
"""A local Ray's shared memory. Nothing large goes through it; the default would reserve 30 % of the machine's memory."""
TRACEBACK_VARIABLE = "RAYSGL_TRACEBACK"
"""Environment variable: show where an unexpected error comes from."""
LAUNCHER_KEYS = {"name", "route_prefix", "import_path", "args"}


class Failed(Exception):
    """Cannot serve. The message is for the user."""


def serve(config_path: str | Path, host: str | None = None, port: int | None = None) -> int:
    """Serve a config until SIGTERM or SIGINT, in a process that a signal to the group does not reach. Returns the exit code;
    problems are on stderr."""
    return supervised(lambda: _serve(config_path, host, port))


def _serve(config_path: str | Path, host: str | None, port: int | None) -> int:
    signals = _Signals()
    try:
        config, deployment = _read(config_path, host, port)
        return _Launch(config, deployment, signals).run()
    except (Failed, ConfigError) as problem:
        print(f"raysgl: {problem}", file=sys.stderr, flush=True)
        return 1
    except check.CheckError as problem:
        for line in problem.problems:
            print(f"raysgl: {config_path}: {line}", file=sys.stderr, flush=True)
        return 1
    except _Stopped as stopped:
        return 128 + stopped.signum
    except Exception as problem:
        if os.environ.get(TRACEBACK_VARIABLE):
            raise
        why = f"{type(problem).__name__}: {_first_line(problem)}"
        print(f"raysgl: cannot serve {config_path}: {why} ({TRACEBACK_VARIABLE}=1 shows where)", file=sys.stderr, flush=True)
        return 1


def _read(path: str | Path, host: str | None, port: int | None) -> tuple[AppConfig, dict]:
    """The config with its overrides, and Serve's part of the file. Raises what is wrong with either, or with the port."""
    config = load(path)
    changes = {key: value for key, value in (("host", host), ("port", port)) if value is not None}
    config = config.model_copy(update={"server": config.server.model_copy(update=changes)})
    document = read(path)
    application = document.get("applications", [{}])[0]
    unheard = sorted(set(application) - LAUNCHER_KEYS)
    if unheard:
        raise ConfigError(path, [f"applications.0.{key}: raysgl serve does not apply it; use serve run" for key in unheard])
    from raysgl.actors.http import listening_socket

    try:
        listening_socket(config.server.host, config.server.port, share=False).close()
    except OSError as error:
        raise Failed(str(error)) from None
    return config, document


class _Stopped(Exception):
    def __init__(self, signum: int):
        self.signum = signum


class _Signals:
    """SIGTERM or SIGINT asks for a stop. `raysgl.supervisor` deals with impatience.

    Handlers are set even where SIGINT was ignored: a shell's background job is to be stoppable like any other.
    """

    def __init__(self) -> None:
        self.received = 0
        self._event = threading.Event()
        self.install()

    def install(self) -> None:
        """Again after `ray.init`, which sets a handler for SIGTERM that prints a stack trace and aborts."""
        for signum in (signal.SIGINT, signal.SIGTERM):
            signal.signal(signum, self._handle)

    def wait(self, timeout: float) -> bool:
        """Whether a stop was asked for, within so many seconds."""
        return self._event.wait(timeout)

    def check(self) -> None:
        if self.received:
            raise _Stopped(self.received)

    def _handle(self, signum: int, frame: object) -> None:
        self.received = self.received or signum
        self._event.set()


class _Launch:
    """One life of an application."""

    def __init__(self, config: AppConfig, document: dict, signals: _Signals):
        self._config, self._document, self._signals = config, document, signals
        self._application = document.get("applications", [{}])[0].get("name", "raysgl")
        self._address = os.environ.get("RAY_ADDRESS") or "local"
        self._display = _Display()
        self._clock = StartupClock("check", time.time())
        self._deployed = False
        self._ray: list[psutil.Process] = []

    def run(self) -> int:
        try:
            with self._display:
                if self._address == "local":
                    self._display.say("checking the model")
                    check.plan(self._config)
                self._signals.check()
                self._clock.enter("ray")
                self._start_ray()
                self._signals.check()
                self._clock.enter("deploy")
                self._deploy()
                serving = self._wait_until_ready()
            self._clock.enter("serving")
            print(ready.block(self._config, serving, self._clock.seconds), flush=True)
            return self._watch()
        finally:
            self._stop()

    # ---------------------------------------------------------------- up

    def _start_ray(self) -> None:
        self._display.say("starting Ray" if self._address == "local" else f"connecting to Ray at {self._address}")
        # Ray reads these when it is imported and when its processes start.
        os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
        os.environ.setdefault("RAY_SERVE_LOG_TO_STDERR", "0")
        import ray

        quiet = {"log_to_driver": False, "logging_level": "ERROR", "configure_logging": True}
        # "local" is a new cluster whatever a crashed one left in /tmp/ray. CPUs are only counted, so count enough of them.
        asked = sum(m.most_replicas * m.engine.tp_size * m.num_cpus_per_shard for m in self._config.models)
        local = {
            "num_cpus": max(os.cpu_count() or 1, int(asked) + 1),
            "include_dashboard": False,
            "object_store_memory": OBJECT_STORE_BYTES,
        }
        try:
            ray.init(address=self._address, **quiet, **(local if self._address == "local" else {}))
        except Exception as error:
            raise Failed(f"Ray does not start: {_first_line(error)}") from error
        finally:
            self._signals.install()
        if self._address == "local":
            self._ray = [child for child in psutil.Process().children() if child.name() in RAY_ITSELF]

    def _deploy(self) -> None:
        import ray
        from ray import serve as ray_serve

        from raysgl.actors import coordinator
        from raysgl.app import build, device_of

        logging.getLogger("ray.serve").setLevel(logging.WARNING)
        self._refuse_what_does_not_fit([device_of(model) for model in self._config.models], ray.cluster_resources())
        document = self._document
        ray_serve.start(
            proxy_location=document.get("proxy_location", "Disabled"),
            http_options=document.get("http_options"),
            logging_config=document.get("logging_config", {"log_level": "WARNING", "enable_access_log": False}),
        )
        self._coordinator = coordinator.connect(self._application)
        self._deployed, self._deployed_at = True, time.monotonic()
        prefix = document.get("applications", [{}])[0].get("route_prefix", "/")
        target = ray_serve.RunTarget(build(self._config), name=self._application, route_prefix=prefix)
        ray_serve.run_many([target], wait_for_ingress_deployment_creation=False, wait_for_applications_running=False)

    def _refuse_what_does_not_fit(self, devices: list[str], resources: dict[str, float]) -> None:
        """Only on a machine of our own: a cluster may grow."""
        needed = sum(
            model.num_replicas * model.engine.tp_size for model, device in zip(self._config.models, devices) if device == "cuda"
        )
        if self._address == "local" and needed > resources.get("GPU", 0):
            raise Failed(f"the config needs {needed} GPUs, but this machine has {int(resources.get('GPU', 0))}")

    def _wait_until_ready(self) -> dict[str, list]:
        """Show what the replicas do until all of them serve and the ingress answers."""
        import ray
        from ray import serve as ray_serve

        wanted = {model.engine.name: model.num_replicas for model in self._config.models}
        next_status = 0.0
        while True:
            self._signals.wait(POLL_S)
            self._signals.check()
            try:
                status = _status(ray.get(self._coordinator.status.remote(), timeout=10))
            except ray.exceptions.RayError:
                continue
            if status.failures:
                raise Failed("; ".join(dict.fromkeys(status.failures.values())))
            served = {name: len(status.serving.get(name, ())) for name in wanted}
            if all(served[name] >= count for name, count in wanted.items()) and answers(self._config.server):
                return status.serving
            self._display.say(self._waits_for_room(status) or _progress(status, served, wanted))
            if time.monotonic() > next_status:
                next_status = time.monotonic() + STATUS_EVERY_S
                application = ray_serve.status().applications.get(self._application)
                if application is not None and application.status == "DEPLOY_FAILED":
                    raise Failed(_why(application))

    def _waits_for_room(self, status) -> str:
        """What the cluster must add or free before anything more can start."""
        from raysgl.actors.placement import waiting_for
        from raysgl.app import deployment_name

        if status.starting or time.monotonic() - self._deployed_at < PLACED_WITHIN_S:
            return ""
        labels = {deployment_name(model, i): model.node_labels for i, model in enumerate(self._config.models)}
        needs = waiting_for(self._application, labels)
        return f"waiting for room in the cluster: {needs}" if needs else ""

    # ---------------------------------------------------------------- running, and down

    def _watch(self) -> int:
        """Until a signal comes. Ray Serve replaces what dies; only Ray's own death ends us."""
        import ray

        while not self._signals.wait(STATUS_EVERY_S):
            if not ray.is_initialized() or self._ray_is_dead():
                raise Failed("Ray has stopped; start again")
        return 0

    def _ray_is_dead(self) -> bool:
        """Whether a process of our own Ray has ended. Calls to it would wait for a minute, so look at the processes."""
        try:
            return any(process.status() == psutil.STATUS_ZOMBIE for process in self._ray)
        except psutil.Error:
            return True

    def _stop(self) -> None:
        if "ray" not in sys.modules:
            return
        import ray

        if not ray.is_initialized() or self._ray_is_dead():
            return  # what is left of Ray, the supervisor kills
        if self._deployed:
            drain = max([self._config.server.drain_timeout_s, *(model.drain_timeout_s for model in self._config.models)])
            print("raysgl: stopping; answers under way may finish (once more: at once)", file=sys.stderr, flush=True)
            stopper = threading.Thread(target=self._stop_application, daemon=True)
            stopper.start()
            limit = time.monotonic() + drain + STOP_LIMIT_S
            while stopper.is_alive() and time.monotonic() < limit and not self._ray_is_dead():
                stopper.join(POLL_S)
        if not self._ray_is_dead():
            ray.shutdown()

    def _stop_application(self) -> None:
        from ray import serve as ray_serve

        from raysgl.actors import coordinator

        with contextlib.suppress(Exception):
            ray_serve.delete(self._application, _blocking=False)
            while self._application in ray_serve.status().applications:
                time.sleep(POLL_S)
        with contextlib.suppress(Exception):
            coordinator.kill(self._application)
        # A Ray of our own ends with us, and Serve with it; somebody else's keeps Serve where others use it.
        with contextlib.suppress(Exception):
            if self._address != "local" and not ray_serve.status().applications:
                ray_serve.shutdown()


class _Display:
    """One line that changes, on a terminal; a line for every change elsewhere."""

    def __init__(self) -> None:
        self._last = ""
        self._status = None
        if sys.stderr.isatty():
            from rich.console import Console

            self._status = Console(stderr=True).status("")

    def __enter__(self) -> Self:
        if self._status is not None:
            self._status.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._status is not None:
            self._status.stop()

    def say(self, text: str) -> None:
        if not text or text == self._last:
            return
        self._last = text
        if self._status is not None:
            self._status.update(text)
        else:
            print(f"raysgl: {text}", file=sys.stderr, flush=True)


def _status(data: bytes):
    import msgspec

    from raysgl.actors.coordinator import Status

    return msgspec.msgpack.decode(data, type=Status)


def _progress(status, served: dict[str, int], wanted: dict[str, int]) -> str:
    phases = sorted({f"{phase.model}: {phase.text}" for phase in status.starting.values()})
    if phases:
        return "; ".join(phases)
    missing = [f"{name}: {served[name]} of {count} replicas" for name, count in wanted.items() if served[name] < count]
    return "; ".join(missing) or "starting the HTTP server"


def answers(server: ServerConfig) -> bool:
    """Whether the HTTP server is there and ready. One that wants a certificate of its clients only has to be there."""
    where = (ready.reachable(server.host), server.port)
    if server.ssl_certfile is None:
        connection = http.client.HTTPConnection(*where, timeout=2)
    else:  # it is our own server, and its certificate may be for another name
        connection = http.client.HTTPSConnection(*where, timeout=2, context=ssl._create_unverified_context())
    try:
        connection.connect()
        if server.ssl_ca_certs is not None:
            return True
        connection.request("GET", "/ready")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()


def _why(application) -> str:
    """The cause of a failed deployment: the last line of the traceback that Serve keeps, or what Serve says itself."""
    for name, deployment in application.deployments.items():
        lines = [line for line in deployment.message.splitlines() if line.strip()]
        if deployment.status == "DEPLOY_FAILED" and lines:
            return f"{name} cannot start: {lines[-1].strip()}"
    return _first_line(application.message)


def _first_line(error: object) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
