"""Step plans and commands from rank 0 to the other shards: PUB/SUB, with a hand-shake so that no follower misses the first plan. No Ray.

A plan costs rank 0 about 15 us to send; actor calls cost 270 and more.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import msgspec
import zmq

from raysgl.actors.transport import Endpoint, Transport
from raysgl.engine.plan import StepPlan
from raysgl.messages import ShardCommand

HELLO, PLAN, COMMAND, STOP = b"h", b"p", b"c", b"s"
GREET_EVERY_S = 0.02


class PlanPublisher:
    """Rank 0's end. `endpoints` (plans, acknowledgements) go to the followers."""

    def __init__(self, transport: Transport, followers: int):
        # No bound on queued plans: the device paces both ends, and a plan dropped would hang the others in their collective.
        self._plans, plans = transport.bind(zmq.PUB, high_water=0)
        self._acks, acks = transport.bind(zmq.PULL)
        self._followers = followers
        self.endpoints = (plans, acks)
        self._encode = msgspec.msgpack.Encoder().encode

    def wait_for_followers(self, timeout: float) -> None:
        """Greet until every follower has answered. TimeoutError after so many seconds."""
        deadline = time.monotonic() + timeout
        answered: set[bytes] = set()
        while len(answered) < self._followers:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{len(answered)} of {self._followers} shards follow the first one after {timeout:.0f} s")
            self._plans.send(HELLO)
            if self._acks.poll(GREET_EVERY_S * 1000):
                answered.add(self._acks.recv())

    def send(self, plan: StepPlan) -> None:
        self._plans.send(PLAN + self._encode(plan))

    def command(self, message: ShardCommand) -> None:
        self._plans.send(COMMAND + self._encode(message))

    def close(self) -> None:
        """Tell the followers to stop."""
        self._plans.send(STOP)
        self._plans.close(1000)
        self._acks.close(0)


class PlanFollower:
    """A follower's end."""

    def __init__(self, transport: Transport, rank: int, endpoints: tuple[Endpoint, Endpoint]):
        self._plans = transport.connect(zmq.SUB, endpoints[0], high_water=0)
        self._plans.subscribe(b"")
        self._acks = transport.connect(zmq.PUSH, endpoints[1])
        self._rank = rank
        self._decode = msgspec.msgpack.Decoder(StepPlan).decode
        self._decode_command = msgspec.msgpack.Decoder(ShardCommand).decode

    def follow(self, launch: Callable[[StepPlan], object], command: Callable[[ShardCommand], object]) -> None:
        """Hand every plan to `launch` and every command to `command`, in order, until rank 0 stops."""
        while True:
            frame = self._plans.recv()
            kind = frame[:1]
            if kind == PLAN:
                launch(self._decode(memoryview(frame)[1:]))
            elif kind == COMMAND:
                command(self._decode_command(memoryview(frame)[1:]))
            elif kind == HELLO:
                self._acks.send(str(self._rank).encode())
            else:
                self._plans.close(0)
                self._acks.close(0)
                return
