"""The ingress's side of serving, against real engine loops with a simulated model: every token is checked."""

import asyncio

import msgspec
import pytest
import pytest_asyncio

from raysgl.actors.frames import FromEngine
from raysgl.api.backend import QueueFull, Unavailable
from raysgl.cache.hashing import page_hashes
from raysgl.messages import LoadedWeights, MemoryChange, WeightsUpdate
from raysgl.sampling.params import SamplingParams
from tests.actors.cluster import MODEL, PAGE, LocalCluster, Reading, ask, kill, stop_answering
from tests.engine.simulated import expected


@pytest_asyncio.fixture
async def cluster():
    cluster = LocalCluster()
    yield cluster
    await cluster.close()


async def settled(check, seconds=5):
    async with asyncio.timeout(seconds):
        while not check():
            await asyncio.sleep(0.01)


def prompt(first, length=23):
    return [(first * 7 + i) % 50 for i in range(length)]


async def test_many_prompts_and_continuations_at_once(cluster):
    cluster.add_engine("a")
    dispatcher = await cluster.add_ingress()
    streams = [await ask(dispatcher, prompt(i), max_new=10 + i, n=2, seed=i) for i in range(12)]
    for i, stream in enumerate(streams):
        reading = await Reading(2).read(stream)
        assert reading.tokens == [expected(prompt(i), 10 + i, seed=i), expected(prompt(i), 10 + i, seed=i + 1)]
        assert [finish.reason for finish in reading.finish] == ["length", "length"]
        assert all(len(cached) == 1 for cached in reading.cached)
    assert dispatcher.num_live() == 0 and not dispatcher._streams


async def test_a_second_prompt_goes_where_its_prefix_is(cluster):
    engines = [cluster.add_engine(name) for name in "abcd"]
    dispatcher = await cluster.add_ingress()
    shared = prompt(1, 400)
    await Reading().read(await ask(dispatcher, shared))
    (first,) = [engine for engine in engines if engine.runner.computed_tokens]
    for i in range(6):
        reading = await Reading().read(await ask(dispatcher, [*shared, i, i]))
        assert reading.cached == [[400]]
    assert [engine for engine in engines if engine.runner.computed_tokens] == [first]


async def test_prompts_with_other_extra_keys_share_nothing(cluster):
    """Neither in the index nor in an engine: `cache_salt` and LoRA come as an extra key."""
    for name in "ab":
        cluster.add_engine(name)
    dispatcher = await cluster.add_ingress()
    for key, cached in (("salt", 0), ("salt", 100), ("other", 0), ("", 0), ("other", 100), ("", 100)):
        sampling = SamplingParams(max_new_tokens=2, seed=0)
        stream = await dispatcher.submit(dispatcher.models[MODEL], "r", prompt(3, 101), sampling, extra_key=key)
        assert (await Reading().read(stream)).cached == [[cached]], key
        index = dispatcher.mirror.routers[MODEL].index
        chain = page_hashes(prompt(3, 101), PAGE, key)
        await settled(lambda: max(index.match(chain).values(), default=0) == 25)  # noqa: B023


async def test_prompts_without_a_prefix_spread(cluster):
    engines = [cluster.add_engine(name, step_s=0.002) for name in "ab"]
    dispatcher = await cluster.add_ingress()
    streams = await asyncio.gather(*(ask(dispatcher, prompt(i), max_new=20, request_id=str(i)) for i in range(12)))
    await asyncio.gather(*(Reading().read(stream) for stream in streams))
    assert all(engine.runner.computed_tokens > 100 for engine in engines)


@pytest.mark.parametrize("n", [1, 3])
async def test_a_replica_that_dies_mid_stream_is_not_noticed(cluster, n):
    for name in "ab":
        cluster.add_engine(name, step_s=0.005)
    dispatcher = await cluster.add_ingress()
    stream = await ask(dispatcher, prompt(1), max_new=40, n=n, seed=5)
    reading = Reading(n)
    await reading.read(stream, until=lambda: all(len(tokens) > 5 for tokens in reading.tokens))
    placement = stream.sequences[0].placement
    kill(dispatcher, cluster.engines[placement.replica])
    await reading.read(stream)
    assert reading.tokens == [expected(prompt(1), 40, seed=5 + i) for i in range(n)]
    assert all(len(cached) == 1 for cached in reading.cached)


async def test_a_stream_whose_only_replica_dies_goes_on_when_another_comes(cluster):
    engine = cluster.add_engine("a", step_s=0.005)
    dispatcher = await cluster.add_ingress()
    stream = await ask(dispatcher, prompt(2), max_new=30)
    reading = Reading()
    await reading.read(stream, until=lambda: len(reading.tokens[0]) > 3)
    kill(dispatcher, engine)
    new = await ask(dispatcher, prompt(3), request_id="new")
    assert not dispatcher.ready() and dispatcher.num_live() == 2
    cluster.add_engine("b")
    await reading.read(stream)
    assert reading.tokens == [expected(prompt(2), 30)]
    assert (await Reading().read(new)).tokens == [expected(prompt(3), 8)]
    assert dispatcher.ready()


async def test_before_there_was_any_replica_nobody_waits_for_one(cluster):
    dispatcher = await cluster.add_ingress()
    with pytest.raises(Unavailable):
        await ask(dispatcher, prompt(1))


async def test_a_new_request_waits_only_so_long_for_a_replica(cluster, monkeypatch):
    engine = cluster.add_engine("a")
    dispatcher = await cluster.add_ingress()
    dispatcher.lost(engine.info)
    monkeypatch.setattr("raysgl.actors.streams.HELD_S", 0.1)
    monkeypatch.setattr("raysgl.actors.dispatcher.MOST_HELD", 2)
    held = [await ask(dispatcher, prompt(i), request_id=str(i)) for i in range(2)]
    with pytest.raises(Unavailable):
        await ask(dispatcher, prompt(2))
    for stream in held:
        assert (await Reading().read(stream)).finish[0].status == 503
    assert dispatcher.num_live() == 0


async def test_an_abort_frees_the_replica(cluster):
    engine = cluster.add_engine("a", step_s=0.005)
    dispatcher = await cluster.add_ingress()
    stream = await ask(dispatcher, prompt(1), max_new=100_000, n=2)
    await stream.get()
    stream.abort(1)
    stream.abort(1)
    await settled(lambda: len(engine.service.scheduler.running) == 1)
    stream.abort()
    await settled(lambda: engine.service.loop.idle)
    assert dispatcher.num_live() == 0
    engine.service.scheduler.check()


async def test_abort_by_request_id_ends_the_stream(cluster):
    cluster.add_engine("a", step_s=0.005)
    dispatcher = await cluster.add_ingress()
    stream = await ask(dispatcher, prompt(1), max_new=100_000, request_id="chat-1")
    assert dispatcher.abort_request("chat") == 0
    assert dispatcher.abort_request("chat-1") == 1
    reading = await Reading().read(stream)
    assert reading.finish[0].reason == "abort"
    assert dispatcher.abort_request(None) == 0


async def test_a_cancelled_submission_leaves_nothing_behind(cluster):
    engine = cluster.add_engine("a")
    dispatcher = await cluster.add_ingress()
    task = asyncio.create_task(ask(dispatcher, prompt(1), max_new=1000))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.sleep(0.05)
    assert dispatcher.num_live() == 0 and engine.service.loop.idle


async def test_a_draining_replica_is_left_alone(cluster):
    for name in "ab":
        cluster.add_engine(name)
    dispatcher = await cluster.add_ingress()
    cluster.engines["a"].service.drain()  # the ingress does not know yet: refusals are re-routed
    streams = [await ask(dispatcher, prompt(i)) for i in range(8)]
    for i, stream in enumerate(streams):
        assert (await Reading().read(stream)).tokens == [expected(prompt(i), 8)]
    assert cluster.engines["a"].runner.computed_tokens == 0


async def test_when_all_drain_a_request_waits_for_the_next_replica(cluster):
    engine = cluster.add_engine("a")
    dispatcher = await cluster.add_ingress()
    engine.service.drain()
    stream = await ask(dispatcher, prompt(1))
    with cluster.lock:
        cluster.state.set_draining("a", 1)
    await settled(lambda: dispatcher._homeless)
    cluster.add_engine("b")
    assert (await Reading().read(stream)).tokens == [expected(prompt(1), 8)]


async def test_what_a_dead_replica_had_accepted_gets_in_where_queues_are_full(cluster):
    """Waiting sequences too, which have had no token yet."""
    for name in "ab":
        cluster.add_engine(name, max_running=2, max_queued=2, step_s=0.002)
    dispatcher = await cluster.add_ingress()
    streams = []
    with pytest.raises(QueueFull):
        for i in range(50):
            streams.append(await ask(dispatcher, prompt(i), max_new=400, request_id=str(i)))
            await asyncio.sleep(0.02)
    assert len(streams) >= 6
    kill(dispatcher, cluster.engines["a"])
    for i, stream in enumerate(streams):
        assert (await Reading().read(stream)).tokens == [expected(prompt(i), 400)]


async def test_full_queues_are_refused(cluster):
    cluster.add_engine("a", max_running=2, max_queued=2, step_s=0.005)
    dispatcher = await cluster.add_ingress()
    streams = []
    with pytest.raises(QueueFull) as refusal:
        for i in range(50):
            streams.append(await ask(dispatcher, prompt(i), max_new=100_000, request_id=str(i)))
            await asyncio.sleep(0.02)
    assert 2 <= len(streams) <= 6 and refusal.value.retry_after >= 1
    for stream in streams:
        stream.abort()


async def test_flush_cache_waits_for_quiet(cluster):
    engine = cluster.add_engine("a", step_s=0.005)
    dispatcher = await cluster.add_ingress()
    stream = await ask(dispatcher, prompt(1), max_new=60)
    await stream.get()
    ok, why = await dispatcher.flush_cache()
    assert not ok and "running" in why
    assert await dispatcher.flush_cache(MODEL, timeout=10) == (True, "cache flushed")
    assert engine.service.scheduler.tree.total_pages == 0


def obeys(engine, ok=True):
    """Its shards carry commands out, or cannot."""
    told = []

    def carry_out(message):
        told.append(message)
        return ok, "" if ok else "no room"

    engine.service._carry_out = carry_out
    return told


async def test_where_memory_is_released_nobody_goes(cluster):
    engines = [cluster.add_engine(name) for name in "ab"]
    told = [obeys(engines[0]), obeys(engines[1], ok=False)]
    dispatcher, other = await cluster.add_ingress(), await cluster.add_ingress("j")
    shared = prompt(1, 40)
    for engine in "ab":  # both know it
        await Reading().read(await ask(dispatcher, shared))
    release, resume = MemoryChange(True, ["weights", "kv_cache"]), MemoryChange(False, ["kv_cache", "weights"])
    done = await dispatcher.change_memory(release)
    assert done == {"a": (True, "released: weights, kv_cache"), "b": (False, "not released: no room")}
    assert [message.change for message in told[0] + told[1]] == [release] * 2
    steps = engines[0].runner.computed_tokens
    for asking in (dispatcher, other) * 5:  # at once: the ones that `a` refuses go on to `b`
        assert (await Reading().read(await ask(asking, shared))).tokens == [expected(shared, 8)]
    assert engines[0].runner.computed_tokens == steps
    told[1] = obeys(engines[1])
    assert (await dispatcher.change_memory(release))["b"][0]
    streams = []
    for asking in (dispatcher, other):
        with pytest.raises(Unavailable, match="POST /resume_memory_occupation"):
            while True:  # what an ingress has not heard yet, the engine says
                streams.append(await ask(asking, shared))
                await asyncio.sleep(0.01)
    for stream in streams:
        (finish,) = (await Reading().read(stream, seconds=5)).finish
        assert finish.status == 503 and "POST /resume_memory_occupation" in finish.message
    assert dispatcher.ready() and dispatcher.num_live() == other.num_live() == 0
    assert set((await dispatcher.change_memory(resume)).values()) == {(True, "resumed: weights, kv_cache")}
    async with asyncio.timeout(5):
        while True:
            try:
                assert (await Reading().read(await ask(other, shared))).tokens == [expected(shared, 8)]
                break
            except Unavailable:
                await asyncio.sleep(0.01)


async def test_new_weights_are_known_to_all_and_each_answer_knows_its_own(cluster):
    engines = [cluster.add_engine(name, step_s=0.005) for name in "ab"]
    told = [obeys(engine) for engine in engines]
    dispatcher, other = await cluster.add_ingress(), await cluster.add_ingress("j")
    old = await ask(dispatcher, prompt(1), max_new=60)
    await old.get()
    update = WeightsUpdate("/new", version="7")
    done = await dispatcher.update_weights(update)
    assert done == dict.fromkeys("ab", (True, "the weights are those of /new"))
    assert [message.update for message in told[0] + told[1]] == [update] * 2
    loaded = LoadedWeights("/new", "auto", "7")
    await settled(
        lambda: all({load.weights for load in each.loads()[MODEL].values()} == {loaded} for each in (dispatcher, other))
    )
    new = await ask(other, prompt(2))
    assert (await Reading().read(new)).tokens == [expected(prompt(2), 8)]
    assert (await Reading().read(old)).finish[0].reason == "length"
    assert (old.weight_version, new.weight_version) == ("default", "7")
    obeys(engines[0], ok=False)
    done = await dispatcher.update_weights(WeightsUpdate("/newer"))
    assert done["a"] == (False, "the weights are those of before: no room") and done["b"][0]


async def test_an_ingress_taken_for_gone_gets_its_streams_back(cluster):
    """The network was away for longer than the grace period; the engine has aborted everything meanwhile."""
    engine = cluster.add_engine("a", step_s=0.005)
    dispatcher = await cluster.add_ingress()
    stream = await ask(dispatcher, prompt(4), max_new=60)
    reading = Reading()
    await reading.read(stream, until=lambda: len(reading.tokens[0]) > 3)
    outbox = engine.service.outbox
    outbox._peers["i"].heard_at -= 100
    outbox._look_after_peers()  # in this thread; the outbox's own may run meanwhile, which only repeats what is done here
    await settled(lambda: not engine.service.scheduler.running)
    dispatcher._fleet.engines["a"].connection.send(dispatcher._fleet._hello)
    await reading.read(stream)
    assert reading.tokens == [expected(prompt(4), 60)]


async def test_the_index_reaches_every_ingress(cluster):
    cluster.add_engine("a")
    cluster.add_engine("b")
    first, second = await cluster.add_ingress("i"), await cluster.add_ingress("j")
    shared = prompt(1, 400)
    await Reading().read(await ask(first, shared))
    router = second.mirror.routers[MODEL]
    await settled(lambda: sum(router.index.pages(name) for name in "ab") >= 100)
    await settled(lambda: not any(known.book.queued_tokens for known in router._replicas.values()))
    assert (await Reading().read(await ask(second, [*shared, 9]))).cached == [[400]]


@pytest.mark.parametrize("lost", [range(3, 4), range(4, 7), range(20, 200)])
async def test_tokens_that_a_broken_connection_lost_are_computed_again(cluster, lost):
    """In the last case the stream's end is among them: only the answer to the next hello shows that they are missing."""
    engine = cluster.add_engine("a", step_s=0.002)
    dispatcher = await cluster.add_ingress()
    stream = await ask(dispatcher, prompt(5), max_new=40)
    await settled(lambda: "i" in engine.service.outbox._peers)
    peer = engine.service.outbox._peers["i"]
    put, decode = peer.put, msgspec.msgpack.decode

    def put_or_lose(frame):
        uids = {output.uid for output in getattr(decode(frame, type=FromEngine).message, "outputs", ())}
        if peer.sent in lost and 1 in uids:  # not what is sent again
            peer.sent += 1
        else:
            put(frame)

    peer.put = put_or_lose
    reading = await Reading().read(stream)
    assert reading.tokens == [expected(prompt(5), 40)]
    await settled(lambda: engine.service.loop.idle)


@pytest.mark.parametrize("met", [True, False])
async def test_requests_that_a_broken_connection_lost_are_sent_again(cluster, met):
    """Where the lost frame was the first, which has the hello, the engine learns where to complain from the next hello."""
    engine = cluster.add_engine("a", step_s=0.002)
    dispatcher = await cluster.add_ingress()
    connection = dispatcher._fleet.engines["a"].connection
    await settled(lambda: "i" in engine.service.outbox._peers)
    if not met:
        del engine.service.outbox._peers["i"]
    encode, connection._encode = connection._encode, lambda frame: b"what nobody can read is as good as lost"
    stream = await ask(dispatcher, prompt(6), max_new=20)
    connection._encode = encode
    assert (await Reading().read(stream)).tokens == [expected(prompt(6), 20)]
    await settled(lambda: engine.service.loop.idle)


async def test_streams_of_the_only_replica_wait_for_it_and_move_when_another_comes(cluster):
    engine = cluster.add_engine("a", step_s=0.005)
    dispatcher = await cluster.add_ingress()
    readings, streams = [Reading(), Reading()], []
    for i, reading in enumerate(readings):
        streams.append(await ask(dispatcher, prompt(i), max_new=(60, 400)[i], request_id=str(i)))
        await reading.read(streams[i], until=lambda reading=reading: len(reading.tokens[0]) > 3)
    uids = [stream.sequences[0].uid for stream in streams]
    wake = stop_answering(dispatcher, engine)
    dispatcher.suspect(engine.info)
    await settled(lambda: not dispatcher.available(MODEL))
    new = await ask(dispatcher, prompt(7), request_id="new")
    wake()
    assert (await Reading().read(new)).tokens == [expected(prompt(7), 8)]
    assert (await readings[0].read(streams[0])).tokens == [expected(prompt(0), 60)]
    assert uids == [stream.sequences[0].uid for stream in streams], "they were sent again"
    wake = stop_answering(dispatcher, engine)
    dispatcher.suspect(engine.info)
    await settled(lambda: not dispatcher.available(MODEL))
    cluster.add_engine("b")
    assert (await readings[1].read(streams[1])).tokens == [expected(prompt(1), 400)]
    wake()


@pytest.mark.parametrize("suspected", [True, False])
async def test_streams_of_a_replica_that_falls_silent_move_and_it_is_used_again_when_it_is_heard(cluster, suspected):
    for name in "ab":
        cluster.add_engine(name, step_s=0.005)
    dispatcher = await cluster.add_ingress()
    stream = await ask(dispatcher, prompt(1), max_new=40)
    reading = Reading()
    await reading.read(stream, until=lambda: len(reading.tokens[0]) > 5)
    silent = cluster.engines[stream.sequences[0].placement.replica]
    wake = stop_answering(dispatcher, silent)
    if suspected:
        dispatcher.suspect(silent.info)
    await reading.read(stream)
    assert reading.tokens == [expected(prompt(1), 40)]
    assert not dispatcher._fleet.hears(silent.info.replica) and dispatcher.available(MODEL)
    wake()
    await settled(lambda: dispatcher._fleet.hears(silent.info.replica))
    await settled(lambda: silent.service.loop.idle)
    streams = await asyncio.gather(*(ask(dispatcher, prompt(i), request_id=str(i)) for i in range(2, 10)))
    for i, stream in enumerate(streams, 2):
        assert (await Reading().read(stream)).tokens == [expected(prompt(i), 8)]


async def test_a_deadline_ends_what_waits_with_504_and_what_runs_with_its_tokens(cluster):
    engine = cluster.add_engine("a", max_running=1, step_s=0.005)
    dispatcher = await cluster.add_ingress()
    running = await ask(dispatcher, prompt(1), max_new=100_000, timeout_s=0.5)
    await running.get()
    waiting = await ask(dispatcher, prompt(2), timeout_s=0.2, n=2, request_id="w")
    patient = await ask(dispatcher, prompt(3), timeout_s=60.0, request_id="p")
    reading = await Reading(2).read(waiting)
    assert [(finish.reason, finish.status) for finish in reading.finish] == [("abort", 504)] * 2
    reading = await Reading().read(running)
    assert (reading.finish[0].reason, reading.finish[0].status) == ("abort", 0)
    assert len(reading.tokens[0]) > 3
    assert (await Reading().read(patient)).tokens == [expected(prompt(3), 8)]
    await settled(lambda: engine.service.loop.idle)
    assert dispatcher.num_live() == 0 and not dispatcher._streams and patient.timer.cancelled()


async def test_a_deadline_holds_where_no_engine_answers(cluster):
    engine = cluster.add_engine("a", step_s=0.005)
    dispatcher = await cluster.add_ingress()
    hung = await ask(dispatcher, prompt(1), timeout_s=0.3)
    stop_answering(dispatcher, engine)
    assert (await Reading().read(hung)).finish[0].reason == "abort"
    dispatcher.lost(engine.info)
    homeless = await ask(dispatcher, prompt(2), timeout_s=0.1)
    assert (await Reading().read(homeless)).finish[0].status == 504
    assert dispatcher.num_live() == 0
