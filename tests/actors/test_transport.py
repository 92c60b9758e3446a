"""The wires, without Ray: what arrives, who is turned away, and what happens when an end is gone."""

import asyncio
import time

import pytest
import zmq

from raysgl.actors.engine_link import FORGOTTEN, EngineInbox, EngineOutbox
from raysgl.actors.ingress_link import EngineConnection, OutputReader
from raysgl.actors.step_channel import PlanFollower, PlanPublisher
from raysgl.actors.transport import Endpoint, KeyPair, Transport
from raysgl.engine.plan import StepPlan
from raysgl.messages import (
    Abort,
    Done,
    Hello,
    Logs,
    LogSettings,
    Profile,
    ProfileRequest,
    SequenceOutput,
    SetLogs,
    StepOutput,
    Submit,
    pack_ids,
)
from raysgl.sampling.params import SamplingParams

HOST = "127.0.0.1"


@pytest.fixture
def client_key():
    return KeyPair.new()


@pytest.fixture
def transports(client_key):
    made = []

    def make(key=None):
        made.append(Transport(HOST, key or client_key))
        return made[-1]

    yield make
    for transport in made:
        transport.close()


def submit(uid, ingress="i", n=1):
    return Submit(uid, f"r{uid}", ingress, pack_ids([1, 2, 3]), SamplingParams(max_new_tokens=4, n=n), [7])


class EngineEnd:
    def __init__(self, transport, grace_s=3.0):
        self.gone = []
        self.outbox = EngineOutbox(transport, "replica", 1, self.gone.append, grace_s)
        self.inbox = EngineInbox(transport, self.outbox)

    async def receive(self, count):
        return await asyncio.to_thread(self._receive, count)

    def _receive(self, count):
        got, deadline = [], time.monotonic() + 10
        while len(got) < count and time.monotonic() < deadline:
            got += self.inbox.receive(0.05)
        return got


@pytest.fixture
def engine(transports):
    end = EngineEnd(transports(), grace_s=0.2)
    yield end
    end.outbox.close()
    end.inbox.close()


class IngressEnd:
    def __init__(self, transport, engine, name="i"):
        self.got, self.numbers = [], []
        self.news = asyncio.Event()
        self.reader = OutputReader(transport, self._take)
        endpoint = self.reader.endpoint
        self.hello = Hello(name, endpoint.address, endpoint.public_key)
        self.engine = EngineConnection(transport, engine.inbox.endpoint, self.hello)

    def _take(self, frame):
        self.numbers.append(frame.number)
        self.got.append(frame.message)
        self.news.set()

    async def until(self, done, seconds=10):
        async with asyncio.timeout(seconds):
            while not done():
                self.news.clear()
                await self.news.wait()

    def close(self):
        self.reader.close()
        self.engine.close()


async def test_submissions_of_one_turn_come_in_order_and_tokens_come_back_in_order(transports, engine):
    ingress = IngressEnd(transports(), engine)
    for uid in range(20):
        ingress.engine.send(submit(uid))
    ingress.engine.send(Abort("i", [3]))
    got = await engine.receive(21)
    assert [m.uid for m in got[:20]] == list(range(20)) and got[20] == Abort("i", [3])
    for step in range(200):
        engine.outbox.emit({"i": [SequenceOutput(1, [step]), SequenceOutput(2, [step])]}, step)
    engine.outbox.answer("i", Done(9, True, "done"))
    await ingress.until(lambda: len(ingress.got) == 201)
    assert [m.step for m in ingress.got[:200]] == list(range(200))
    assert all(m.replica == "replica" and m.outputs[1].token_ids == [m.step] for m in ingress.got[:200])
    assert ingress.got[200] == Done(9, True, "done")
    ingress.close()


async def test_commands_come_to_the_engine_and_log_levels_to_all_ingresses(transports, engine):
    first, second = IngressEnd(transports(), engine, "i"), IngressEnd(transports(), engine, "j")
    sent = [
        SetLogs("i", 1, LogSettings("debug", requests=True)),
        Profile("i", 2, ProfileRequest("f", "p", ["CPU"], 3)),
        Profile("j", 3, None),
    ]
    for message in sent[:2]:
        first.engine.send(message)
    second.engine.send(sent[2])
    assert sorted(await engine.receive(3), key=lambda message: message.uid) == sent
    engine.outbox.tell_all(Logs(LogSettings("debug")))
    for ingress in (first, second):
        await ingress.until(lambda ingress=ingress: ingress.got)
        assert ingress.got == [Logs(LogSettings("debug"))]
        ingress.close()


async def test_outputs_wait_for_an_ingress_that_is_still_connecting(transports, engine):
    """The hello and the first step come within the same millisecond; nothing may be lost to IMMEDIATE."""
    ingress = IngressEnd(transports(), engine)
    ingress.engine.close()
    engine.outbox.greet(ingress.hello)
    for step in range(5):
        engine.outbox.emit({"i": [SequenceOutput(1, [step])]}, step)
    await ingress.until(lambda: len(ingress.got) == 5)
    assert [m.step for m in ingress.got] == list(range(5))
    ingress.reader.close()


async def test_a_draining_engine_refuses_new_requests_for_another_to_take(transports, engine):
    ingress = IngressEnd(transports(), engine)
    engine.inbox.draining = True
    ingress.engine.send(submit(5, n=2))
    ingress.engine.send(Abort("i", [1]))
    assert await engine.receive(1) == [Abort("i", [1])]
    await ingress.until(lambda: ingress.got)
    assert [(o.uid, o.finish.status) for o in ingress.got[0].outputs] == [(5, 503), (6, 503)]
    ingress.close()


async def test_a_stranger_is_turned_away_at_both_ends(transports, engine):
    stranger = transports(KeyPair.new())
    ingress = IngressEnd(transports(), engine)
    for endpoint, frame in ((engine.inbox.endpoint, b"\x91\x00"), (ingress.reader.endpoint, b"\x91\x00")):
        socket = stranger.connect(zmq.PUSH, endpoint)
        await asyncio.sleep(0.3)
        with pytest.raises(zmq.Again):  # the hand-shake failed, so there is no connection to send on
            socket.send(frame, zmq.NOBLOCK)
        socket.close(0)
    ingress.engine.send(submit(1))
    assert len(await engine.receive(1)) == 1
    ingress.close()


async def test_without_curve_nothing_gets_through(engine):
    context = zmq.Context()
    socket = context.socket(zmq.PUSH)
    socket.linger = 0
    socket.connect(engine.inbox.endpoint.address)
    socket.send(b"\x90")
    await asyncio.sleep(0.2)
    assert engine.inbox.receive(0.0) == []
    context.destroy(linger=0)


async def test_an_impostor_at_the_address_gets_nothing(transports, engine):
    """The engine insists on the public key that the ingress gave, not only on the address."""
    ingress = IngressEnd(transports(), engine)
    wrong = Hello("other", ingress.hello.address, KeyPair.new().public)
    engine.outbox.greet(wrong)
    engine.outbox.emit({"other": [SequenceOutput(1, [1])]}, 1)
    await asyncio.sleep(0.3)
    assert not ingress.got
    ingress.close()


async def test_an_ingress_that_is_gone_is_reported_once_and_told_when_it_comes_back(transports, engine):
    ingress = IngressEnd(transports(), engine)
    await asyncio.to_thread(engine.inbox.receive, 0.2)
    engine.outbox.emit({"i": [SequenceOutput(1, [1])]}, 1)
    await ingress.until(lambda: ingress.got)
    ingress.close()
    async with asyncio.timeout(10):
        while not engine.gone:
            engine.outbox.emit({"i": [SequenceOutput(1, [2])]}, 2)
            await asyncio.sleep(0.02)
    engine.outbox.emit({"i": [SequenceOutput(1, [3])]}, 3)
    assert engine.gone == ["i"]

    back = IngressEnd(transports(), engine)
    await asyncio.to_thread(engine.inbox.receive, 0.2)
    await back.until(lambda: back.got)
    assert isinstance(back.got[0], StepOutput) and back.got[0].step == FORGOTTEN and not back.got[0].outputs
    back.close()


async def test_an_engine_that_died_never_blocks_or_fails_the_sender(transports):
    ingress = IngressEnd(transports(), EngineEndAt(Endpoint("tcp://127.0.0.1:9", KeyPair.new().public)))
    for uid in range(3000):
        ingress.engine.send(submit(uid))
    await asyncio.sleep(0.05)
    ingress.close()


class EngineEndAt:
    def __init__(self, endpoint):
        self.inbox = type("Inbox", (), {"endpoint": endpoint})


async def test_followers_get_every_plan_after_the_hand_shake(transports):
    publisher = PlanPublisher(transports(), followers=2)
    seen = {1: [], 2: []}

    async def follow(rank):
        follower = PlanFollower(transports(), rank, publisher.endpoints)
        await asyncio.to_thread(follower.follow, lambda plan: seen[rank].append(plan.step), seen[rank].append)

    tasks = [asyncio.create_task(follow(rank)) for rank in seen]
    await asyncio.to_thread(publisher.wait_for_followers, 20)
    for step in range(3000):
        publisher.send(StepPlan(step, b"", b"", b"", b"", 0, b"", b"", b"", b"", []))
    command = Profile("i", 1, ProfileRequest("folder", "id", ["CPU"]))
    publisher.command(command)
    publisher.close()
    await asyncio.wait_for(asyncio.gather(*tasks), 20)
    assert seen == {1: [*range(3000), command], 2: [*range(3000), command]}


async def test_a_follower_that_never_comes_is_an_error(transports):
    publisher = PlanPublisher(transports(), followers=1)
    with pytest.raises(TimeoutError, match="0 of 1"):
        await asyncio.to_thread(publisher.wait_for_followers, 0.1)
    publisher.close()
