"""Random histories of a small cluster: whatever is lost, late, restarted or dead, in the end every mirror equals the replicas' trees.

Replicas are real radix trees with real event logs; batches may be dropped, delayed, overtaken or repeated on the way. Histories come
from a seed, with odds chosen so that each trouble meets a cluster that has something to lose. The coordinator is one to three
shards, each with troubles of its own.
"""

import functools
import operator
import random

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from raysgl.cache import RadixTree, ShardedEvents
from raysgl.cache.hashing import shard_of
from raysgl.messages import KVEvents, Load
from raysgl.routing import CoordinatorState, Decision, Mirror, PrefixIndex, ReplicaInfo, RouteRequest
from raysgl.routing.index import SHARDS
from raysgl.routing.messages import Updates

P = 2


class FakeReplica:
    """One life of a replica: the engine's side of the protocol."""

    def __init__(self, name: str, epoch: int, shards: int):
        self.info = ReplicaInfo(name, epoch, "m", "address", page_size=P)
        self.events = ShardedEvents(name, epoch, shards)
        self.tree = RadixTree(P, self.events.append)
        self.pages = 0

    def compute(self, tokens):
        have = self.tree.match(tokens).pages
        new = range(self.pages + 1, self.pages + 1 + len(tokens) // P - len(have))
        self.pages += len(new)
        self.tree.insert(tokens, [*have, *new])

    def snapshot(self, shard, **limits):
        return self.events.snapshot(list(self.tree.stored()), shard, **limits)

    def hashes(self, shard):
        """All cached pages whose chain begins with one of the shard's."""
        found = set()
        stack = [top for top in self.tree.root.children.values() if shard_of(top.hashes[0], len(self.events.logs)) == shard]
        while stack:
            node = stack.pop()
            found.update(node.hashes)
            stack.extend(node.children.values())
        return found


class Cluster:
    def __init__(self, seed: int):
        self.now = 0.0
        self.random = random.Random(seed)
        self.epoch = 1
        self.shards = self.random.randint(1, 3)
        self.coordinators = [CoordinatorState(self.epoch, self.now, timeout_s=1e9, max_log=300) for _ in range(self.shards)]
        self.replicas: dict[str, FakeReplica] = {}
        self.dead: list[FakeReplica] = []
        self.mirrors = [Mirror(f"i{i}", i, self.shards) for i in range(2)]
        self.wire: list[bytes] = []
        self.marks: dict[tuple[str, int, int, int], tuple[int, int]] = {}

    def next_epoch(self) -> int:
        self.epoch += 1
        return self.epoch

    def any_shard(self) -> int:
        return self.random.randrange(self.shards)

    def prompt(self) -> list[int]:
        tokens = [token for _ in range(self.random.randint(1, 6)) for token in (0, self.random.randint(0, 1))]
        return [self.random.randint(0, 2), *tokens[1:]]  # so that chains begin in all shards

    def send(self, batch):
        self.wire.append(msgspec.msgpack.encode(batch))

    def deliver(self, data: bytes):
        batch = msgspec.msgpack.decode(data, type=KVEvents)
        coordinator = self.coordinators[batch.shard]
        reply = coordinator.apply_events(batch, self.now)
        replica = self.replicas.get(batch.replica)
        if replica is None or replica.info.epoch != batch.epoch:
            later = [info for info in coordinator.replicas("m") if info.replica == batch.replica and info.epoch > batch.epoch]
            assert not later or reply.action == "dead", "events of a dead life were taken"
            return
        action = reply.action
        assert action != "dead", "a living replica was turned away"
        if action == "register":
            action = coordinator.register(replica.info, self.now).action
        if action == "snapshot":
            for part in replica.snapshot(batch.shard, max_pages=4):
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
            for log in replica.events.logs:
                batch = log.drain(self.random.choice([None, Load(running=1)]) if log.shard == 0 else None)
                if batch is not None:
                    for _ in range(self.random.choices([0, 1, 2], [1, 20, 2])[0]):
                        self.send(batch)

    def mark(self, lost: float = 0.1):
        for replica in self.replicas.values():
            for log in replica.events.logs:
                batch = log.drain(None, mark=1)
                hashes = replica.hashes(log.shard)
                self.marks[replica.info.replica, batch.epoch, log.shard, batch.sequence] = (
                    len(hashes),
                    functools.reduce(operator.xor, hashes, 0),
                )
                if self.random.random() >= lost:
                    self.send(batch)

    def arrive(self):
        if self.random.random() < 0.1:
            self.random.shuffle(self.wire)
        for _ in range(self.random.randint(0, len(self.wire))):
            self.deliver(self.wire.pop(0))

    def poll(self):
        mirror, shard = self.random.choice(self.mirrors), self.any_shard()
        coordinator = self.coordinators[shard]
        updates = coordinator.updates_since(*mirror.cursors[shard], self.now, self.random.choice([1, 3, 1000]))
        if self.random.random() < 0.8:
            taken = mirror.apply(msgspec.msgpack.decode(msgspec.msgpack.encode(updates), type=Updates), self.now, shard)
            if taken and mirror.cursors[shard] == (coordinator.epoch, coordinator.version):
                self.compare(mirror, shard)

    def route(self):
        mirror = self.random.choice(self.mirrors)
        for decision in mirror.choose("m", [RouteRequest([self.random.getrandbits(64)], 20)], self.now):
            if isinstance(decision, Decision) and self.random.random() < 0.5:
                mirror.first_token("m", decision.ticket, self.now)
                mirror.finish("m", decision.ticket, self.now)
        self.coordinators[0].routed(mirror.take_routed())

    def start(self):
        name = self.random.choice("abc")
        if name in self.replicas:
            self.dead.append(self.replicas[name])
        self.replicas[name] = replica = FakeReplica(name, self.next_epoch(), self.shards)
        for coordinator in self.coordinators:
            if self.random.random() < 0.7:
                coordinator.register(replica.info, self.now)

    def die(self):
        if self.replicas:
            name = self.random.choice(list(self.replicas))
            self.dead.append(self.replicas.pop(name))
            for coordinator in self.coordinators:
                coordinator.leave(name, self.dead[-1].info.epoch)

    def silence(self):
        """A coordinator hears nothing of anybody for too long, though all are well."""
        coordinator = self.coordinators[self.any_shard()]
        coordinator._timeout, timeout = -1.0, coordinator._timeout
        coordinator.expire(self.now)
        coordinator._timeout = timeout

    def dead_life_speaks(self):
        if self.dead:
            late = self.random.choice(self.dead)
            late.compute(self.prompt())
            for batch in late.snapshot(self.any_shard()):
                self.send(batch)

    def coordinator_restarts(self):
        settle = self.random.choice([0, 5])
        again = CoordinatorState(self.next_epoch(), self.now, settle_s=settle, timeout_s=1e9, max_log=300)
        self.coordinators[self.any_shard()] = again

    def live(self, steps: int):
        often = [self.work, self.report, self.arrive, self.poll, self.poll]
        sometimes = [self.route, self.start, self.mark]
        rarely = [self.die, self.silence, self.dead_life_speaks, self.coordinator_restarts]
        odds = [20] * len(often) + [4] * len(sometimes) + [1] * len(rarely)
        for step in self.random.choices([*often, *sometimes, *rarely], odds, k=steps):
            self.now += self.random.random() * 0.2
            step()

    # ------------------------------------------------------------------ what must hold

    def compare(self, mirror: Mirror, shard: int):
        """A mirror that has followed a shard to the end equals it, and both know what the replicas held at their marks."""
        coordinator = self.coordinators[shard]
        known = {info.replica: info.epoch for info in coordinator.replicas("m")}
        if shard == 0:
            assert known == {info.replica: info.epoch for info in mirror.replicas("m")}
        theirs = coordinator.indexes.get("m", PrefixIndex())
        ours = mirror.routers["m"].index.parts[shard] if mirror.routers else PrefixIndex()
        for name in known:
            assert theirs.hashes_of(name) == ours.hashes_of(name) and theirs.pages(name) == ours.pages(name)
        for mark in [*theirs.marks(), *ours.marks()]:
            assert self.marks[mark.replica, mark.epoch, shard, mark.sequence] == (mark.pages, mark.digest)
        assert not any(ours.wrong_masks(part) or theirs.wrong_masks(part) for part in range(SHARDS))

    def follow(self):
        for mirror in self.mirrors:
            for shard, coordinator in enumerate(self.coordinators):
                while coordinator.has_news(*mirror.cursors[shard], self.now):
                    assert mirror.apply(coordinator.updates_since(*mirror.cursors[shard], self.now, 50), self.now, shard)

    def calm(self):
        """Replicas report as they do every second, nothing is lost, mirrors poll: all are equal, and equal to the trees."""
        self.now += 10
        for _ in range(4):
            for replica in self.replicas.values():
                for log in replica.events.logs:
                    self.send(log.drain(Load()) if log.shard == 0 else log.drain() or log.heartbeat())
            while self.wire:
                self.deliver(self.wire.pop(0))
        self.follow()
        self.mark(lost=0)
        while self.wire:
            self.deliver(self.wire.pop(0))
        self.follow()
        for mirror in self.mirrors:
            assert {info.replica: info.epoch for info in mirror.replicas("m")} == {
                name: replica.info.epoch for name, replica in self.replicas.items()
            }
            for shard in range(self.shards):
                self.compare(mirror, shard)
                for name, replica in self.replicas.items():
                    index, hashes = mirror.routers["m"].index.parts[shard], replica.hashes(shard)
                    assert index.hashes_of(name) == hashes and index.pages(name) == len(hashes)
                    assert any((mark.replica, mark.epoch) == (name, replica.info.epoch) for mark in index.marks())


@settings(max_examples=150, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_all_views_agree_in_the_end(seed):
    cluster = Cluster(seed)
    for _ in range(3):
        cluster.live(80)
        cluster.calm()
