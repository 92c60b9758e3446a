"""What `raysgl bench tax` compares with: engine and HTTP in one process, plain uvicorn, no Ray.

Scheduler, loop, runner, dispatcher and HTTP app are those of the whole stack; only Ray, its processes and the coordinator are not
there. Run as `python -m raysgl.bench.one_process` with a `Spec` on stdin; prints a line when it serves, ends on SIGTERM and when stdin
does.
"""

from __future__ import annotations

import asyncio
import gc
import signal
import sys
import time

import msgspec

from raysgl.bench.local_engine import LocalEngine
from raysgl.config import EngineConfig, ServerConfig
from raysgl.messages import KVEvents
from raysgl.routing import CoordinatorState, Mirror, ReplicaInfo
from raysgl.routing.messages import Reply

HOST = "127.0.0.1"
NAME = "one#0"


class Spec(msgspec.Struct):
    """engine: an EngineConfig as JSON."""

    engine: str
    port: int


class NoCoordinator:
    """Agrees to everything: there is one engine, and the dispatcher knows it."""

    def register(self, shard: int) -> Reply:
        return Reply(1)

    def report(self, batch: KVEvents) -> Reply:
        return Reply(1)


async def serve(spec: Spec) -> None:
    from raysgl.actors.dispatcher import Dispatcher
    from raysgl.actors.engine_service import EngineService
    from raysgl.actors.grammars import make_grammars
    from raysgl.actors.http import HttpServer, listening_socket
    from raysgl.actors.served_models import load_served_model
    from raysgl.actors.transport import KeyPair, Transport
    from raysgl.api.app import create_app
    from raysgl.engine.defaults import scheduler_config

    config = EngineConfig.model_validate_json(spec.engine)
    engine = LocalEngine(config, lambda what, done=0, total=0: None)
    transport = Transport(HOST, KeyPair.new())
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()

    def fatal(reason: str) -> None:
        print(reason, file=sys.stderr, flush=True)
        loop.call_soon_threadsafe(stopped.set)

    service = EngineService(
        NAME,
        1,
        scheduler_config(config, engine.limits, engine.runner.num_pages, engine.model.eos_token_ids, engine.model.vocab_size),
        engine.runner,
        transport,
        NoCoordinator(),
        fatal=fatal,
        overlap=engine.device == "cuda" and not config.disable_overlap_schedule,
        grammars=make_grammars(config, engine.checkpoint),
    )
    endpoint = service.inbox.endpoint
    keys = {"curve": endpoint.public_key}
    info = ReplicaInfo(
        NAME, 1, config.name, endpoint.address, keys, page_size=config.page_size, max_queued=engine.limits.max_queued
    )
    state, mirror = CoordinatorState(epoch=1, now=time.monotonic(), settle_s=0.0), Mirror("one")
    state.register(info, time.monotonic())
    mirror.apply(state.updates_since(*mirror.cursors[0], time.monotonic()), time.monotonic())
    dispatcher = Dispatcher(transport, "one", {config.name: load_served_model(config)}, mirror)
    dispatcher.connect(info)
    service.start()
    settings = ServerConfig(port=spec.port, drain_timeout_s=1)
    server = HttpServer(create_app(dispatcher, settings), listening_socket(HOST, spec.port), 1, settings)
    await server.started()
    gc.collect()
    gc.freeze()  # as the ingress and the shards do
    loop.add_signal_handler(signal.SIGTERM, stopped.set)
    loop.add_reader(sys.stdin.fileno(), stopped.set)  # nothing more is said there: it was closed, or who asked is dead
    print("serving", flush=True)
    while not stopped.is_set():
        mirror.take_routed()
        await asyncio.sleep(0.1)
    await server.drain()
    dispatcher.close()
    service.stop()


if __name__ == "__main__":
    import uvloop

    uvloop.run(serve(msgspec.json.decode(sys.stdin.buffer.readline(), type=Spec)))
