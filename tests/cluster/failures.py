"""Ways in which a cluster breaks. Each takes the cluster and the load, breaks something, and returns the calls that may fail."""

from __future__ import annotations

import ctypes
import os
import socket
import time
from collections.abc import Callable

import psutil

from tests.cluster.load import Call, Load
from tests.cluster.nodes import FakeCluster

PIDFD_GETFD = 438
"""The system call's number, the same on all Linux architectures since 5.6."""

Failure = Callable[[FakeCluster, Load], set[Call]]


def nothing(cluster: FakeCluster, load: Load) -> set[Call]:
    """What the others are compared with."""
    return set()


def shard(cluster: FakeCluster, load: Load) -> set[Call]:
    """kill -9 of a process that computes; where a replica has several, hardly the one that schedules."""
    cluster.shards()[-1].kill()
    return set()


def replica(cluster: FakeCluster, load: Load) -> set[Call]:
    """kill -9 of the Serve replica that owns the shards."""
    cluster.replica_actors()[0].kill()
    return set()


def all_shards(cluster: FakeCluster, load: Load) -> set[Call]:
    """kill -9 of every engine at once: for seconds there is none."""
    for process in cluster.shards():
        process.kill()
    return set()


def connection(cluster: FakeCluster, load: Load) -> set[Call]:
    """Cut every TCP connection between one ingress and one shard, at a moment when tokens are on them."""
    engine, ingress = cluster.shards()[0], cluster.ingresses()[0]
    ports = {c.laddr.port for c in engine.net_connections("tcp")}
    cut = [c for c in ingress.net_connections("tcp") if c.status == psutil.CONN_ESTABLISHED and _peer(c, engine, ports)]
    assert cut, "the ingress has no connection to the shard"
    for connection in cut:
        _shut(ingress.pid, connection.fd)
    return set()


def coordinator(cluster: FakeCluster, load: Load) -> set[Call]:
    """kill -9 of the coordinator."""
    cluster.coordinator().kill()
    return set()


def node(cluster: FakeCluster, load: Load) -> set[Call]:
    """A whole node: one that has a replica. If an ingress is there, its own clients may fail."""
    index = next(index for process in cluster.shards() if (index := cluster.node_of(process)) is not None)
    living = [process for process in cluster.ingresses() if cluster.node_of(process) != index]
    return _not_of(living, load, lambda: cluster.crash_node(index))


def hang(cluster: FakeCluster, load: Load) -> set[Call]:
    """SIGSTOP: the engine's process is alive, and does nothing any more."""
    cluster.shards()[0].suspend()
    return set()


def ingress(cluster: FakeCluster, load: Load) -> set[Call]:
    """kill -9 of one of several ingresses: its own clients may fail, nobody else's."""
    process, *living = cluster.ingresses()

    def kill() -> None:
        process.kill()
        psutil.wait_procs([process], timeout=10)

    return _not_of(living, load, kill)


def update(cluster: FakeCluster, load: Load) -> set[Call]:
    """Deploy a changed config: every replica and every ingress is replaced."""
    cluster.deploy(engine={"max_running_requests": 48})
    return set()


def fewer(cluster: FakeCluster, load: Load) -> set[Call]:
    """One replica less, and one ingress."""
    cluster.deploy(replicas=cluster.replicas - 1, ingresses=1)
    return set()


def only(cluster: FakeCluster, load: Load) -> set[Call]:
    """Update the one replica that there is: for seconds there is none, and new requests wait."""
    cluster.deploy(replicas=1, ingresses=1)
    cluster.deploy(replicas=1, ingresses=1, engine={"max_running_requests": 48})
    return set()


def _peer(connection, engine: psutil.Process, ports: set[int]) -> bool:
    """Whether the other end is the engine's: either of the two may have opened it."""
    theirs = {c.raddr.port for c in engine.net_connections("tcp") if c.raddr}
    return connection.raddr.port in ports and connection.laddr.port in theirs


def _not_of(living: list[psutil.Process], load: Load, kill: Callable[[], None]) -> set[Call]:
    """Calls under way before all that `kill` ends is dead, whose connection none of the living has: also those that just connected."""
    at = time.monotonic()
    ports = _ports(living)
    kill()
    calls = load.since(at)
    ports |= _ports(living)
    return {call for call in calls if call.port not in ports}


def _ports(processes: list[psutil.Process]) -> set[int]:
    return {c.raddr.port for process in processes for c in process.net_connections("tcp") if c.raddr}


def _shut(pid: int, fd: int) -> None:
    """Shut down another process's socket, as if the network had done it."""
    libc = ctypes.CDLL(None, use_errno=True)
    handle = os.pidfd_open(pid)
    try:
        ours = libc.syscall(PIDFD_GETFD, handle, fd, 0)
        if ours < 0:
            raise OSError(ctypes.get_errno(), "pidfd_getfd")
        with socket.socket(fileno=ours) as sock:
            sock.shutdown(socket.SHUT_RDWR)
    finally:
        os.close(handle)


FAILURES: dict[str, Failure] = {
    "nothing": nothing,
    "shard": shard,
    "replica": replica,
    "connection": connection,
    "coordinator": coordinator,
    "node": node,
    "ingress": ingress,
    "hang": hang,
    "all shards": all_shards,
    "update": update,
    "fewer": fewer,
    "update of the only one": only,
}
