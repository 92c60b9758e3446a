"""A whole application in one process, without Ray: coordinator state, engines with a simulated model, an ingress's dispatcher."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time

from raysgl.actors.dispatcher import Dispatcher
from raysgl.actors.engine_service import EngineService
from raysgl.actors.transport import KeyPair, Transport
from raysgl.api.served_model import ServedModel
from raysgl.engine.background import BackgroundRunner
from raysgl.engine.scheduler import SchedulerConfig
from raysgl.routing import CoordinatorState, Mirror, ReplicaInfo
from raysgl.sampling.params import SamplingParams
from tests.engine.simulated import VOCAB, SimulatedRunner

HOST, MODEL, PAGE = "127.0.0.1", "m", 4


class SlowRunner(SimulatedRunner):
    """Takes `step_s` for a step, and stops for good while `frozen`."""

    step_s = 0.0
    frozen = False

    def launch(self, plan):
        time.sleep(self.step_s)
        while self.frozen:
            time.sleep(0.005)
        return super().launch(plan)


class LocalEngine:
    def __init__(
        self, cluster, name, epoch=1, num_pages=256, max_running=8, max_queued=1000, step_s=0.0, runner=None, config=None
    ):
        """runner, config: of a model that does not generate."""
        self.transport = Transport(HOST, cluster.keys)
        self.runner = runner or SlowRunner(num_pages, PAGE, max_running)
        self.runner.step_s = step_s
        self.cluster = cluster
        self.failed = []
        config = config or SchedulerConfig(
            page_size=PAGE,
            num_pages=num_pages,
            context_length=10**6,
            max_running=max_running,
            max_queued=max_queued,
            step_tokens=64,
        )
        self.service = EngineService(
            name, epoch, config, BackgroundRunner(lambda: self.runner), self.transport, self, fatal=self.failed.append
        )
        endpoint = self.service.inbox.endpoint
        self.info = ReplicaInfo(
            name, epoch, MODEL, endpoint.address, {"curve": endpoint.public_key}, page_size=PAGE, max_queued=max_queued
        )
        self.register()
        self.service.start()

    def register(self, shard=0):
        with self.cluster.lock:
            return self.cluster.state.register(self.info, time.monotonic())

    def report(self, batch):
        with self.cluster.lock:
            return self.cluster.state.apply_events(batch, time.monotonic())

    def stop(self):
        self.runner.frozen = False
        self.service.stop()
        self.transport.close()


class LocalCluster:
    def __init__(self):
        self.keys = KeyPair.new()
        self.lock = threading.Lock()
        self.state = CoordinatorState(epoch=1, now=time.monotonic(), settle_s=0.0)
        self.engines = {}
        self.dispatchers = []
        self.pumps = []

    def add_engine(self, name, **settings):
        self.engines[name] = LocalEngine(self, name, **settings)
        return self.engines[name]

    async def add_ingress(self, name="i"):
        model = ServedModel(MODEL, "", None, None, 10**6, VOCAB, (), page_size=PAGE)
        dispatcher = Dispatcher(Transport(HOST, self.keys), name, {MODEL: model}, Mirror(name))
        self.dispatchers.append(dispatcher)
        self.pumps.append(asyncio.create_task(self._pump(dispatcher)))
        async with asyncio.timeout(10):
            while len(dispatcher.mirror.replicas(MODEL)) < len(self.engines):
                await asyncio.sleep(0.01)
        return dispatcher

    async def _pump(self, dispatcher):
        """What the ingress does with the coordinator actor."""
        while True:
            with self.lock:
                self.state.routed(dispatcher.mirror.take_routed())
                updates = self.state.updates_since(*dispatcher.mirror.cursors[0], time.monotonic())
            dispatcher.mirror.apply(updates, time.monotonic())
            for info in dispatcher.mirror.replicas(MODEL):
                dispatcher.connect(info)
            await asyncio.sleep(0.01)

    async def close(self):
        for pump in self.pumps:
            pump.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await pump
        for dispatcher in self.dispatchers:
            dispatcher.close()
            dispatcher._fleet._transport.close()
        for engine in self.engines.values():
            await asyncio.to_thread(engine.stop)


def kill(dispatcher, engine):
    """The replica stops dead in the middle of a step, and the ingress's lifeline breaks."""
    engine.runner.frozen = True
    dispatcher.lost(engine.info)


def stop_answering(dispatcher, engine):
    """The replica stops like a process that gets SIGSTOP: no step ends, and no hello is answered. Returns what wakes it."""
    engine.runner.frozen = True
    outbox, held = engine.service.outbox, []
    handle = outbox._handle
    outbox._handle = held.append

    def wake():
        engine.runner.frozen = False
        for item in held:
            outbox._queue.put(item)
        outbox._handle = handle

    return wake


def ask(dispatcher, prompt, max_new=8, request_id="r", timeout_s=None, **settings):
    sampling = SamplingParams(max_new_tokens=max_new, seed=settings.pop("seed", 0), **settings)
    return dispatcher.submit(dispatcher.models[MODEL], request_id, prompt, sampling, timeout_s=timeout_s)


class Reading:
    """All that a stream says, by sequence."""

    def __init__(self, n=1):
        self.tokens = [[] for _ in range(n)]
        self.finish = [None] * n
        self.cached = [[] for _ in range(n)]

    async def read(self, stream, until=None, seconds=20):
        """Until every sequence has finished, or `until()`."""
        async with asyncio.timeout(seconds):
            while not all(self.finish) and not (until and until()):
                for index, output in await stream.get():
                    assert self.finish[index] is None, "an output after the last"
                    self.tokens[index] += output.token_ids
                    self.finish[index] = output.finish
                    if output.cached_tokens is not None:
                        self.cached[index].append(output.cached_tokens)
        return self
