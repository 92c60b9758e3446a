"""Random histories of a small cluster: whatever is lost, late, restarted or dead, in the end every mirror equals the replicas' trees.

Replicas are real radix trees with real event logs; batches may be dropped, delayed, overtaken or repeated on the way. Histories come
from a seed, with odds chosen so that each trouble meets a cluster that has something to lose.
"""

import functools
import operator
import random

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from raysgl.cache import EventLog, RadixTree
from raysgl.messages import KVEvents, Load
from raysgl.routing import CoordinatorState, Decision, Mirror, PrefixIndex, ReplicaInfo, RouteRequest
from raysgl.routing.index import SHARDS
from raysgl.routing.messages import Updates

P = 2


class FakeReplica:
    """One life of a replica: the engine's side of the protocol."""

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

    def mark(self):
        """A batch with a mark, and what everybody must then take down."""
        batch = self.log.drain(None, mark=1)
        hashes = self.hashes()
        return batch, (len(hashes), functools.reduce(operator.xor, hashes, 0))

    def hashes(self):
        return {page for event in self.tree.stored() for page in event.hashes}


class Cluster:
    def __init__(self, seed: int):
        self.now = 0.0
        self.random = random.Random(seed)
        self.epoch = 1
        self.coordinator = CoordinatorState(self.epoch, self.now, timeout_s=1e9, max_log=300)
        self.replicas: dict[str, FakeReplica] = {}
        self.dead: list[FakeReplica] = []
        self.mirrors = [Mirror("i0", 0), Mirror("i1", 1)]
        self.wire: list[bytes] = []
        self.marks: dict[tuple[str, int, int], tuple[int, int]] = {}

    def next_epoch(self) -> int:
        self.epoch += 1
        return self.epoch

    def prompt(self) -> list[int]:
        return [token for _ in range(self.random.randint(1, 6)) for token in (0, self.random.randint(0, 1))]

    def send(self, batch):
        self.wire.append(msgspec.msgpack.encode(batch))

    def deliver(self, data: bytes):
        batch = msgspec.msgpack.decode(data, type=KVEvents)
        reply = self.coordinator.apply_events(batch, self.now)
        replica = self.replicas.get(batch.replica)
        if replica is None or replica.info.epoch != batch.epoch:
            later = [
                info for info in self.coordinator.replicas("m") if info.replica == batch.replica and info.epoch > batch.epoch
            ]
            assert not later or reply.action == "dead", "events of a dead life were taken"
            return
        action = reply.action
        assert action != "dead", "a living replica was turned away"
        if action == "register":
            action = self.coordinator.register(replica.info, self.now).action
        if action == "snapshot":
            for part in replica.log.snapshot(replica.tree.stored(), max_pages=4):
                self.send(part)

    # ------------------------------------------------------------------ what may happen

    def work(self):
        for replica in self.replicas.values():
            replica.compute(self.prompt())
            if self.random.random() < 0.3:
                replica.tree.evict(self.random.randint(1, 4))
            if self.random.random() < 0.03:
                replica.tree.clear()

    def report(self):
        for replica in self.replicas.values():
            batch = replica.log.drain(self.random.choice([None, Load(running=1)]))
            if batch is not None:
                for _ in range(self.random.choices([0, 1, 2], [1, 20, 2])[0]):
                    self.send(batch)

    def mark(self):
        for replica in self.replicas.values():
            batch, expected = replica.mark()
            self.marks[batch.replica, batch.epoch, batch.sequence] = expected
            if self.random.random() < 0.9:
                self.send(batch)

    def compare_marks(self, index):
        for mark in index.marks():
            assert self.marks[mark.replica, mark.epoch, mark.sequence] == (mark.pages, mark.digest)

    def arrive(self):
        if self.random.random() < 0.1:
            self.random.shuffle(self.wire)
        for _ in range(self.random.randint(0, len(self.wire))):
            self.deliver(self.wire.pop(0))

    def poll(self):
        mirror = self.random.choice(self.mirrors)
        updates = self.coordinator.updates_since(*mirror.cursor, self.now, self.random.choice([1, 3, 1000]))
        if self.random.random() < 0.8:
            self.compare_marks(self.coordinator.indexes.get("m", PrefixIndex()))
            taken = mirror.apply(msgspec.msgpack.decode(msgspec.msgpack.encode(updates), type=Updates), self.now)
            if taken and mirror.cursor == (self.coordinator.epoch, self.coordinator.version):
                self.compare(mirror)

    def route(self):
        mirror = self.random.choice(self.mirrors)
        for decision in mirror.choose("m", [RouteRequest([self.random.getrandbits(64)], 20)], self.now):
            if isinstance(decision, Decision) and self.random.random() < 0.5:
                mirror.first_token("m", decision.ticket, self.now)
                mirror.finish("m", decision.ticket, self.now)
        self.coordinator.routed(mirror.take_routed())

    def start(self):
        name = self.random.choice("abc")
        if name in self.replicas:
            self.dead.append(self.replicas[name])
        self.replicas[name] = replica = FakeReplica(name, self.next_epoch())
        if self.random.random() < 0.7:
            self.coordinator.register(replica.info, self.now)

    def die(self):
        if self.replicas:
            name = self.random.choice(list(self.replicas))
            self.dead.append(self.replicas.pop(name))
            self.coordinator.leave(name, self.dead[-1].info.epoch)

    def silence(self):
        """The coordinator hears nothing of anybody for too long, though all are well."""
        self.coordinator._timeout, timeout = -1.0, self.coordinator._timeout
        self.coordinator.expire(self.now)
        self.coordinator._timeout = timeout

    def dead_life_speaks(self):
        if self.dead:
            late = self.random.choice(self.dead)
            late.compute(self.prompt())
            for batch in late.log.snapshot(late.tree.stored()):
                self.send(batch)

    def coordinator_restarts(self):
        settle = self.random.choice([0, 5])
        self.coordinator = CoordinatorState(self.next_epoch(), self.now, settle_s=settle, timeout_s=1e9, max_log=300)

    def live(self, steps: int):
        often = [self.work, self.report, self.arrive, self.poll]
        sometimes = [self.route, self.start, self.mark]
        rarely = [self.die, self.silence, self.dead_life_speaks, self.coordinator_restarts]
        odds = [20] * len(often) + [4] * len(sometimes) + [1] * len(rarely)
        for step in self.random.choices([*often, *sometimes, *rarely], odds, k=steps):
            self.now += self.random.random() * 0.2
            step()

    # ------------------------------------------------------------------ what must hold

    def compare(self, mirror: Mirror):
        """A mirror that has followed to the end equals the coordinator."""
        known = {info.replica: info.epoch for info in mirror.replicas("m")}
        assert known == {info.replica: info.epoch for info in self.coordinator.replicas("m")}
        for name in known:
            theirs, ours = self.coordinator.indexes["m"], mirror.routers["m"].index
            assert theirs.hashes_of(name) == ours.hashes_of(name) and theirs.pages(name) == ours.pages(name)
        for router in mirror.routers.values():
            self.compare_marks(router.index)
            assert not any(router.index.wrong_masks(shard) for shard in range(SHARDS))

    def calm(self):
        """Replicas report as they do every second, nothing is lost, mirrors poll: all are equal, and equal to the trees."""
        self.now += 10
        for _ in range(4):
            for replica in self.replicas.values():
                self.send(replica.log.drain(Load()))
            while self.wire:
                self.deliver(self.wire.pop(0))
        self.follow()
        self.mark_all_at_once()
        self.follow()
        for mirror in self.mirrors:
            self.compare(mirror)
            assert {info.replica: info.epoch for info in mirror.replicas("m")} == {
                name: replica.info.epoch for name, replica in self.replicas.items()
            }
            for name, replica in self.replicas.items():
                hashes = replica.hashes()
                index = mirror.routers["m"].index
                assert index.hashes_of(name) == hashes and index.pages(name) == len(hashes)
                assert any((mark.replica, mark.epoch) == (name, replica.info.epoch) for mark in index.marks())

    def follow(self):
        for mirror in self.mirrors:
            while self.coordinator.has_news(*mirror.cursor, self.now):
                assert mirror.apply(self.coordinator.updates_since(*mirror.cursor, self.now, 50), self.now)

    def mark_all_at_once(self):
        for replica in self.replicas.values():
            batch, expected = replica.mark()
            self.marks[batch.replica, batch.epoch, batch.sequence] = expected
            assert self.coordinator.apply_events(batch, self.now).action == "none"


@settings(max_examples=150, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_all_views_agree_in_the_end(seed):
    cluster = Cluster(seed)
    for _ in range(3):
        cluster.live(80)
        cluster.calm()
