"""Random histories of a small cluster: whatever is lost, late, restarted or dead, in the end every mirror equals the replicas' trees.

Replicas are real radix trees with real event logs; batches may be dropped, delayed, reordered or repeated on the way.
"""

import random

import msgspec
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule

from raysgl.cache import EventLog, RadixTree
from raysgl.messages import KVEvents, Load
from raysgl.routing import CoordinatorState, Decision, Mirror, ReplicaInfo, RouteRequest
from raysgl.routing.messages import Updates

P = 2
names = st.sampled_from(["a", "b", "c"])
prompts = st.lists(st.sampled_from([(0, 0), (0, 1)]), min_size=1, max_size=6).map(
    lambda pages: [t for page in pages for t in page]
)


class FakeReplica:
    """One life of a replica: the engine's side of the protocol, as `raysgl.actors` has it."""

    def __init__(self, name: str, epoch: int):
        self.info = ReplicaInfo(name, epoch, "m", "address", page_size=P)
        self.log = EventLog(name, epoch)
        self.tree = RadixTree(P, self.log.append)
        self.pages = 0

    def compute(self, tokens):
        have = self.tree.match(tokens).pages
        new = range(self.pages + 1, self.pages + 1 + len(tokens) // P - len(have))
        self.pages += len(new)
        self.tree.insert(tokens, [*have, *new])

    def hashes(self):
        return {page for event in self.tree.stored() for page in event.hashes}


class Cluster(RuleBasedStateMachine):
    def __init__(self):
        super().__init__()
        self.now = 0.0
        self.epochs = iter(range(1, 10_000))
        self.random = random.Random(0)
        self.coordinator = CoordinatorState(next(self.epochs), self.now, timeout_s=1e9, max_log=150)
        self.replicas: dict[str, FakeReplica] = {}
        self.dead: list[FakeReplica] = []
        self.mirrors = [Mirror("i0", 0), Mirror("i1", 1)]
        self.wire: list[bytes] = []

    def deliver(self, data: bytes):
        batch = msgspec.msgpack.decode(data, type=KVEvents)
        reply = self.coordinator.apply_events(batch, self.now)
        replica = self.replicas.get(batch.replica)
        if replica is None or replica.info.epoch != batch.epoch:
            assert reply.action != "none", "events of a dead life were taken"
            return
        self.act(replica, reply.action)

    def act(self, replica: FakeReplica, action: str):
        assert action != "dead", "a living replica was turned away"
        if action == "register":
            action = self.coordinator.register(replica.info, self.now).action
        if action == "snapshot":
            self.wire += [msgspec.msgpack.encode(b) for b in replica.log.snapshot(replica.tree.stored(), max_pages=3)]

    @rule(name=names)
    def start(self, name):
        if name in self.replicas:
            self.dead.append(self.replicas[name])
        self.replicas[name] = FakeReplica(name, next(self.epochs))
        if self.random.random() < 0.7:
            self.coordinator.register(self.replicas[name].info, self.now)

    @rule(name=names, tokens=prompts)
    def compute(self, name, tokens):
        if name in self.replicas:
            self.replicas[name].compute(tokens)

    @rule(name=names, count=st.integers(1, 5))
    def evict(self, name, count):
        if name in self.replicas:
            self.replicas[name].tree.evict(count)

    @rule(name=names)
    def flush(self, name):
        if name in self.replicas:
            self.replicas[name].tree.clear()

    @rule(name=names, fate=st.sampled_from(["sent", "sent", "sent", "lost", "twice"]), load=st.booleans())
    def report(self, name, fate, load):
        if name in self.replicas:
            batch = self.replicas[name].log.drain(Load(running=1) if load else None)
            if batch is not None and fate != "lost":
                self.wire += [msgspec.msgpack.encode(batch)] * (2 if fate == "twice" else 1)

    @rule(which=st.integers(0, 99))
    def one_arrives(self, which):
        """Any one: batches overtake each other."""
        if self.wire:
            self.deliver(self.wire.pop(which % len(self.wire) if which > 50 else 0))

    @rule()
    def a_dead_life_speaks(self):
        if self.dead:
            late = self.dead[-1]
            late.compute([0, 0, 0, 1])
            for batch in late.log.snapshot(late.tree.stored()):
                self.wire.append(msgspec.msgpack.encode(batch))

    @rule(name=names)
    def die(self, name):
        replica = self.replicas.pop(name, None)
        if replica is not None:
            self.dead.append(replica)
            self.coordinator.leave(name, replica.info.epoch)

    @rule(settled=st.booleans())
    def coordinator_restarts(self, settled):
        self.coordinator = CoordinatorState(
            next(self.epochs), self.now, settle_s=0 if settled else 5, timeout_s=1e9, max_log=150
        )

    @rule(which=st.integers(0, 1), lost=st.booleans(), most=st.sampled_from([1, 3, 100]))
    def poll(self, which, lost, most):
        mirror = self.mirrors[which]
        updates = self.coordinator.updates_since(*mirror.cursor, self.now, most)
        if not lost:
            mirror.apply(msgspec.msgpack.decode(msgspec.msgpack.encode(updates), type=Updates), self.now)

    @rule(which=st.integers(0, 1), tokens=prompts, finish=st.booleans())
    def route(self, which, tokens, finish):
        mirror = self.mirrors[which]
        for decision in mirror.choose("m", [RouteRequest([], len(tokens))], self.now):
            if isinstance(decision, Decision) and finish:
                mirror.first_token("m", decision.ticket, self.now)
                mirror.finish("m", decision.ticket, self.now)
        self.coordinator.routed(mirror.take_routed())

    @rule(seconds=st.floats(0, 3))
    def wait(self, seconds):
        self.now += seconds

    def teardown(self):
        """Everything calms down: replicas report as they do every second, what is under way arrives, mirrors poll."""
        self.now += 10
        for _ in range(4):
            for replica in self.replicas.values():
                batch = replica.log.drain(Load())
                self.wire.append(msgspec.msgpack.encode(batch))
            while self.wire:
                self.deliver(self.wire.pop(0))
        index = self.coordinator.indexes.get("m")
        for mirror in self.mirrors:
            for _ in range(100):
                if not self.coordinator.has_news(*mirror.cursor, self.now):
                    break
                assert mirror.apply(self.coordinator.updates_since(*mirror.cursor, self.now, 50), self.now)
            known = {info.replica: info.epoch for info in mirror.replicas("m")}
            assert known == {name: replica.info.epoch for name, replica in self.replicas.items()}
            for name, replica in self.replicas.items():
                hashes = replica.hashes()
                assert index.hashes_of(name) == hashes and index.pages(name) == len(hashes)
                assert mirror.routers["m"].index.hashes_of(name) == hashes
                assert mirror.routers["m"].index.pages(name) == len(hashes)


Cluster.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestCluster = Cluster.TestCase
