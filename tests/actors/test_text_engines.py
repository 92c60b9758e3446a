"""Engines of a model that makes numbers of texts, behind a dispatcher: the same wires, moves, refusals and aborts. No Ray, no torch."""

import asyncio
import dataclasses
import time

import numpy as np
import pytest
import pytest_asyncio

from raysgl.api.backend import QueueFull
from raysgl.api.pooling.compute import NOTHING
from raysgl.engine.pooling.texts import TextsConfig
from raysgl.messages import ProfileRequest
from raysgl.models.pooling import PoolingSpec
from tests.actors.cluster import MODEL, LocalCluster, kill

SPEC = PoolingSpec("embed", "mean", True, 2, 100, "BertModel")


@dataclasses.dataclass
class SumRunner:
    """A text's numbers are the sum of its tokens and its first segment. `step_s`: of a step; `frozen`: it never ends."""

    step_s: float = 0.0
    frozen: bool = False
    steps: int = 0
    num_pages: int = 0

    def launch(self, plan):
        time.sleep(self.step_s)
        while self.frozen:
            time.sleep(0.005)
        self.steps += 1
        rows = [[ids.sum(), first] for ids, first in zip(plan.token_ids, plan.first_segments, strict=True)]
        return Ended(np.array(rows, dtype=np.float32))


@dataclasses.dataclass
class Ended:
    numbers: np.ndarray

    def result(self):
        return self.numbers


class Texts:
    """A cluster whose model is one of this kind."""

    def __init__(self):
        self.cluster = LocalCluster()

    def engine(self, name, step_s=0.0, **settings):
        config = TextsConfig(**{"context_length": 100, "max_running": 4, "max_queued": 1000, "step_tokens": 0, **settings})
        return self.cluster.add_engine(name, runner=SumRunner(), config=config, step_s=step_s, max_queued=config.max_queued)

    async def ingress(self):
        dispatcher = await self.cluster.add_ingress()
        dispatcher.models[MODEL].pooling = SPEC
        return dispatcher


@pytest_asyncio.fixture
async def texts():
    texts = Texts()
    yield texts
    await texts.cluster.close()


def ask(dispatcher, ids, request_id="r", first_segment=0):
    return dispatcher.submit(dispatcher.models[MODEL], request_id, ids, NOTHING, first_segment=first_segment)


async def numbers(stream):
    async with asyncio.timeout(20):
        ((_, output),) = await stream.get()
    assert output.finish is not None
    return np.frombuffer(output.numbers, "<f4").tolist() if output.numbers else output.finish


async def test_texts_spread_over_the_replicas(texts):
    engines = [texts.engine(name, step_s=0.002) for name in "ab"]
    dispatcher = await texts.ingress()
    streams = await asyncio.gather(*(ask(dispatcher, [i, i + 1, 5], first_segment=i) for i in range(60)))
    assert [await numbers(stream) for stream in streams] == [[2 * i + 6, i] for i in range(60)]
    assert all(engine.runner.steps > 2 for engine in engines)
    assert dispatcher.num_live() == 0 and not dispatcher._streams


async def test_a_replica_that_dies_is_not_noticed(texts):
    engines = [texts.engine(name, step_s=0.005) for name in "ab"]
    dispatcher = await texts.ingress()
    engines[0].runner.frozen = True
    streams = await asyncio.gather(*(ask(dispatcher, [i]) for i in range(40)))
    kill(dispatcher, engines[0])
    assert [await numbers(stream) for stream in streams] == [[i, 0] for i in range(40)]


async def test_a_draining_replica_is_left_alone(texts):
    engines = [texts.engine(name) for name in "ab"]
    dispatcher = await texts.ingress()
    engines[0].service.drain()
    streams = await asyncio.gather(*(ask(dispatcher, [i]) for i in range(10)))
    assert [await numbers(stream) for stream in streams] == [[i, 0] for i in range(10)]
    assert engines[0].runner.steps == 0


async def test_aborts_reach_the_queue(texts):
    engine = texts.engine("a")
    dispatcher, other = await texts.ingress(), await texts.cluster.add_ingress("j")
    other.models[MODEL].pooling = SPEC
    engine.runner.frozen = True
    running, waiting, theirs = [await ask(d, [1], r) for d, r in ((dispatcher, "x"), (dispatcher, "y"), (other, "z"))]
    async with asyncio.timeout(20):  # an abort by another ingress may overtake what it aborts
        while (load := engine.service.loop.load()).running + load.waiting < 3:
            await asyncio.sleep(0.005)
    running.abort()
    assert dispatcher.abort_request("y") == 1
    dispatcher.abort_request("z")
    assert (await numbers(waiting)).message == (await numbers(theirs)).message == "the request was aborted"
    engine.runner.frozen = False
    assert await numbers(await ask(dispatcher, [3])) == [3, 0]
    assert dispatcher.num_live() == other.num_live() == 0 and engine.service.loop.idle


async def test_full_queues_are_refused(texts):
    engine = texts.engine("a", max_queued=2, max_running=1)
    dispatcher = await texts.ingress()
    engine.runner.frozen = True
    streams = []
    with pytest.raises(QueueFull):
        for i in range(30):
            streams.append(await ask(dispatcher, [i]))
            await asyncio.sleep(0.02)
    assert 2 <= len(streams) <= 6
    engine.runner.frozen = False
    ends = [await numbers(stream) for stream in streams]
    assert all(end == [i, 0] or end.status == 429 for i, end in enumerate(ends))


async def test_load_and_commands(texts):
    engine = texts.engine("a", step_s=0.01)
    dispatcher = await texts.ingress()
    await asyncio.gather(*[numbers(await ask(dispatcher, [1] * 50)) for _ in range(8)])
    load = engine.service.loop.load()
    assert load.prompt_tokens == 400 and load.prefill_rate > 0 and load.ttft > 0 and load.queued_tokens == 0
    assert await dispatcher.flush_cache() == (True, "nothing is cached")
    assert (await dispatcher.profile(ProfileRequest("/nowhere", "x", ["CPU"])))["a"] == (False, "this engine takes no commands")
