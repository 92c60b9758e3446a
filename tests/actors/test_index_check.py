"""The index is compared with the caches while requests come and go: marks, walks, differences. Real engine loops, no Ray."""

import asyncio
import random

import pytest_asyncio

from raysgl.actors.index_check import wrong_masks
from raysgl.messages import PagesStored
from raysgl.routing import CacheView, Views, compare
from tests.actors.cluster import MODEL, LocalCluster, Reading, ask


@pytest_asyncio.fixture
async def cluster():
    cluster = LocalCluster()
    yield cluster
    await cluster.close()


async def check(cluster, with_hashes=False):
    """As `IndexCheck` does it, without Ray."""
    marked = [asyncio.wrap_future(engine.service.publisher.mark(with_hashes)) for engine in cluster.engines.values()]
    reports = await asyncio.wait_for(asyncio.gather(*marked), 20)
    with cluster.lock:
        version = cluster.state.version
        views = [CacheView("coordinator", cluster.state.indexes[MODEL].marks(), [])]
    for dispatcher in cluster.dispatchers:
        mirror = dispatcher.mirror
        async with asyncio.timeout(10):
            while mirror.cursors[0][1] < version:
                await asyncio.sleep(0.01)
        wrong = await wrong_masks(part for router in mirror.routers.values() for part in router.index.parts)
        views.append(CacheView(dispatcher.name, mirror.marks(), wrong))
    return compare(dict(zip(cluster.engines, reports)), Views(views, []))


async def load(dispatcher, stop, seed):
    choose = random.Random(seed)
    while not stop.is_set():
        prompt = [choose.randrange(3) for _ in range(choose.randint(4, 60))]
        stream = await ask(dispatcher, prompt, max_new=choose.randint(1, 30), seed=seed)
        if choose.random() < 0.2:
            stream.abort()
        else:
            await Reading().read(stream)


async def test_all_views_are_equal_at_every_moment_of_a_load(cluster):
    """In so small a pool that prefixes are evicted and sequences retracted all the time."""
    engines = [cluster.add_engine(name, num_pages=40, step_s=0.001) for name in "ab"]
    dispatchers = [await cluster.add_ingress(name) for name in "ij"]
    stop = asyncio.Event()
    tasks = [asyncio.create_task(load(dispatchers[i % 2], stop, i)) for i in range(10)]
    shares = []
    for _ in range(12):
        await asyncio.sleep(0.05)
        result = await check(cluster)
        assert result["status"] == "equal", result
        shares += [replica["pages"] for replica in result["replicas"].values()]
    stop.set()
    await asyncio.gather(*tasks)
    assert any(pages["in_use"] for pages in shares) and any(pages["free"] < 5 for pages in shares)
    assert all(engine.service.loop.load().retractions or engine.runner.computed_tokens for engine in engines)


async def test_lost_batches_are_made_up_for(cluster):
    engine = cluster.add_engine("a")
    dispatcher = await cluster.add_ingress()
    report, lost = engine.report, []

    def lose(batch):
        if any(isinstance(event, PagesStored) for event in batch.events) and not lost:
            lost.append(batch)
            raise ConnectionError
        return report(batch)

    engine.service.publisher._report = lose
    await Reading().read(await ask(dispatcher, list(range(40))))
    async with asyncio.timeout(15):
        while not lost or (await check(cluster))["status"] != "equal":
            await asyncio.sleep(0.05)
    assert cluster.state.indexes[MODEL].pages("a") > 5


async def test_differences_are_named(cluster):
    cluster.add_engine("a")
    dispatcher = await cluster.add_ingress()
    await Reading().read(await ask(dispatcher, list(range(40))))
    assert (await check(cluster))["replicas"]["a"]["status"] == "equal"
    (mirror,) = dispatcher.mirror.routers[MODEL].index.parts
    gone = min(mirror.hashes_of("a"))
    member = mirror._members["a"]
    mirror._discard(member, [gone])
    mirror._store(member, [7, 8])
    result = await check(cluster)
    replica = result["replicas"]["a"]
    assert (result["status"], replica["views"]["coordinator"]) == ("different", {"status": "equal"})
    assert "missing" not in replica["views"]["i"]
    seen = (await check(cluster, with_hashes=True))["replicas"]["a"]["views"]["i"]
    assert seen["missing"] == {"count": 1, "examples": [f"{gone:016x}"]}
    assert seen["extra"] == {"count": 2, "examples": ["0000000000000007", "0000000000000008"]}
    mirror._shards[7][7] = 0
    assert "masks" in (await check(cluster))["replicas"]["a"]["views"]["i"]["problem"]


async def test_pages_that_nobody_owns_are_noticed(cluster):
    engine = cluster.add_engine("a")
    await cluster.add_ingress()
    engine.service.scheduler.pool.allocate(1)
    result = await check(cluster)
    assert result["status"] == "different" and result["replicas"]["a"]["pages"]["balanced"] is False


async def test_what_cannot_be_compared_is_busy(cluster):
    engine = cluster.add_engine("a")
    await cluster.add_ingress()
    result = await check(cluster)
    assert compare({"a": None}, Views([], []))["status"] == "busy"
    report = await asyncio.wrap_future(engine.service.publisher.mark())
    assert compare({"a": report}, Views([CacheView("late", [], [])], []))["replicas"]["a"]["views"]["late"] == {
        "status": "busy"
    }
    assert compare({"a": report}, Views([], ["i"]))["status"] == "busy"
    assert result["status"] == "equal"
