"""The ingress: HTTP in, tokens out. A Serve deployment for placement and health; its work is done in an event loop of its own.

That loop (uvloop, in a thread) runs uvicorn, the dispatcher and the following of the coordinator, so that neither Serve's health
checks nor its request path share a loop with token streams. Requests that do come through Serve are bridged into it.
Imports no torch.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import logging
import threading
import time
import uuid

import msgspec
import ray
import uvloop
from ray import serve
from ray.actor import ActorHandle
from ray.exceptions import ActorDiedError, RayError
from ray.serve.handle import DeploymentHandle

from raysgl.actors import coordinator as coordination
from raysgl.actors.dispatcher import Dispatcher
from raysgl.actors.errors import sentence
from raysgl.actors.http import App, HttpServer, bridge, listening_socket, others_listen
from raysgl.actors.index_check import IndexCheck, wrong_masks
from raysgl.actors.served_models import load_served_model
from raysgl.actors.transport import KeyPair, Transport
from raysgl.api.app import create_app
from raysgl.config import AppConfig
from raysgl.logs import log_settings, set_logs
from raysgl.routing import CacheView, Mirror, ReplicaInfo, Updates
from raysgl.routing.messages import facts_of

log = logging.getLogger(__name__)

NOTICES_S = 0.02
"""How often the coordinator is told what was sent where."""
AWAY_S = 0.5
"""How long to wait before asking a coordinator again that did not answer."""
HEALTH_S = 20.0
CLOSE_S = 1.0
"""What the HTTP server gets to close its connections, after the gate has waited for the answers."""


class Ingress:
    """Serve calls this; it starts an `IngressLoop` in a thread and waits for it."""

    async def __init__(self, config: AppConfig, *engines: DeploymentHandle):
        """`engines`: the models' deployments, which Serve starts because they are bound here."""
        set_logs(log_settings(config.server))
        application = serve.get_replica_context().app_name
        self._loop = uvloop.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="ingress", daemon=True)
        self._thread.start()
        self._inner = IngressLoop(config, application, engines)
        try:
            await self._run(self._inner.start())
        except Exception as error:
            coordinator = coordination.connect(application)
            await coordinator.failed.remote(self._inner.name, sentence(error))
            raise

    def __serve_build_asgi_app__(self) -> App:
        return bridge(self._inner.app, self._loop)

    async def check_health(self) -> None:
        """Raises when the HTTP server has ended; TimeoutError when its loop does not answer."""
        await asyncio.wait_for(self._run(self._inner.check()), HEALTH_S)

    async def __del__(self) -> None:
        """Serve stops this replica: answers under way may finish within `drain_timeout_s`."""
        if hasattr(self, "_inner"):
            await self._run(self._inner.stop())

    async def _run(self, coroutine):
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(coroutine, self._loop))


class IngressLoop:
    """What happens in the ingress's own loop."""

    def __init__(self, config: AppConfig, application: str, engines: tuple[DeploymentHandle, ...]):
        self._config = config
        self._engines = engines
        self._wakes: dict[str, asyncio.Task] = {}
        self._application = application
        self.name = f"ingress-{uuid.uuid4().hex[:12]}"
        server = config.server
        self._mirror = Mirror(self.name, None, server.coordinator_shards, server.routing_policy, server.show_hot_prefix_text)
        self._decode = msgspec.msgpack.Decoder(Updates).decode
        self._handles: dict[str, ActorHandle] = {}
        self._lifelines: dict[tuple[str, int], asyncio.Task] = {}
        self._tasks: list[asyncio.Task] = []

    async def start(self) -> None:
        """Listen, load the tokenizers, and begin to follow the coordinator. Raises what keeps it from doing so."""
        server = self._config.server
        sock = listening_socket(server.host, server.port)
        self._coordinators = [
            await asyncio.to_thread(coordination.connect, self._application, shard)
            for shard in range(server.coordinator_shards)
        ]
        keys = KeyPair(*await self._coordinators[0].client_keys.remote())
        models = [await asyncio.to_thread(load_served_model, model.engine) for model in self._config.models]
        transport = Transport(ray.util.get_node_ip_address(), keys)
        self.dispatcher = Dispatcher(transport, self.name, {model.name: model for model in models}, self._mirror)
        for model, engine in zip(self._config.models, self._engines):
            if model.autoscaling is not None and not model.autoscaling.min_replicas:
                self.dispatcher.wakers[model.engine.name] = functools.partial(self._wake, model.engine.name, engine)
        self.dispatcher.index_check = IndexCheck(self._coordinators, self._mirror, self._handles)
        self.app = create_app(self.dispatcher, server, self.name if server.num_ingress > 1 else None)
        loop = asyncio.get_running_loop()
        await self._catch_up(0)  # one that replaces another knows the replicas before it is asked
        self._tasks = [loop.create_task(self._follow(shard)) for shard in range(server.coordinator_shards)]
        self._tasks.append(loop.create_task(self._tell()))
        self._http = HttpServer(self.app, sock, CLOSE_S, server)
        await self._http.started()
        gc.collect()
        gc.freeze()  # what is loaded by now stays; requests are not to pay for walking it

    async def check(self) -> None:
        if not self._http.alive:
            raise RuntimeError("the HTTP server has ended")

    async def stop(self) -> None:
        if hasattr(self, "_http"):
            self.dispatcher.stopping = True
            if await asyncio.to_thread(others_listen, self._config.server.port):
                await self._http.leave()
            # First the gate, still listening if nobody else does: who asks now gets 503 and Retry-After, through Serve's bridge too.
            await self.app.state.gate.drain(self._config.server.drain_timeout_s)
            await self._http.drain()
            self.dispatcher.draining = True
        for task in [*self._tasks, *self._lifelines.values(), *self._wakes.values()]:
            task.cancel()
        if hasattr(self, "dispatcher"):
            self.dispatcher.close()

    def _wake(self, model: str, engine: DeploymentHandle) -> None:
        """A call that waits for a replica makes Serve's autoscaler start one. One at a time is enough."""

        async def call() -> None:
            try:
                await engine.wake.remote()
            except Exception as error:  # noqa: BLE001 - whatever Serve raises: who still waits calls again
                log.warning("%s does not start: %s", model, sentence(error))
            finally:
                del self._wakes[model]

        if model not in self._wakes:
            log.info("%s is scaled to zero; starting a replica", model)
            self._wakes[model] = asyncio.get_running_loop().create_task(call())

    # ---------------------------------------------------------------- the coordinator

    async def _follow(self, shard: int) -> None:
        """Keep the mirror like a shard of the coordinator, and be connected to every replica that the first one knows."""
        while True:
            try:
                await self._catch_up(shard)
            except RayError as error:
                log.warning("the coordinator does not answer (%s); serving goes on without it", type(error).__name__)
                await asyncio.sleep(AWAY_S)
                with contextlib.suppress(RayError, ValueError):
                    self._coordinators[shard] = await asyncio.to_thread(coordination.connect, self._application, shard)

    async def _catch_up(self, shard: int) -> None:
        updates, handles = await self._coordinators[shard].sync.remote(self.name, *self._mirror.cursors[shard])
        self._mirror.apply(self._decode(updates), time.monotonic(), shard)
        if not shard:
            self._handles.update(handles)
            self._connect()

    def _connect(self) -> None:
        alive = set()
        for model in self._config.models:
            for info in self._mirror.replicas(model.engine.name):
                alive.add(info.replica)
                if (info.replica, info.epoch) in self._lifelines or info.replica not in self._handles:
                    continue
                self._learn(info)
                self.dispatcher.connect(info)
                watch = self._watch(info, self._handles[info.replica])
                self._lifelines[info.replica, info.epoch] = asyncio.get_running_loop().create_task(watch)
        for replica in [replica for replica in self._handles if replica not in alive]:
            del self._handles[replica]

    def _learn(self, info: ReplicaInfo) -> None:
        """The model's limits are what its replicas found."""
        facts, model = facts_of(info), self.dispatcher.models[info.model]
        model.context_length = facts.context_length
        model.max_total_tokens = facts.max_total_tokens

    async def _watch(self, info: ReplicaInfo, shard: ActorHandle) -> None:
        """A call that never returns, until the process on the other side is dead."""
        while True:
            try:
                await shard.lifeline.remote()
            except ActorDiedError:
                break
            except RayError:  # not reachable just now; Ray will say when it is dead
                self.dispatcher.suspect(info)
                await asyncio.sleep(AWAY_S)
        log.warning("replica %s is gone", info.replica)
        self.dispatcher.lost(info)
        del self._lifelines[info.replica, info.epoch]

    async def _tell(self) -> None:
        while True:
            await asyncio.sleep(NOTICES_S)
            notices = self._mirror.take_routed()
            if notices:
                self._coordinators[0].routed.remote(msgspec.msgpack.encode(notices))
            if news := self._mirror.hot.take_news(time.monotonic()):
                self._coordinators[0].hot.remote(msgspec.msgpack.encode(news))
            if self._mirror.marked:
                self._mirror.marked = False
                wrong = await wrong_masks(part for router in self._mirror.routers.values() for part in router.index.parts)
                view = CacheView(self.name, self._mirror.marks(), wrong)
                self._coordinators[0].view.remote(msgspec.msgpack.encode(view))
