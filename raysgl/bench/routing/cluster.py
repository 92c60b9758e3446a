"""The clock: arrivals, replicas, and messages between them that take their time."""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field
from typing import Any

from raysgl.bench.routing.calibration import Calibration
from raysgl.bench.routing.policies import Policy
from raysgl.bench.routing.replica import Replica
from raysgl.bench.routing.requests import Request, Sequence
from raysgl.bench.routing.workloads import Workload
from raysgl.cache import EventLog

# What an event on the heap does.
ARRIVE, SUBMIT, WAKE, FIRST, FINISH, PUBLISH, CALL = range(7)


@dataclass(frozen=True)
class Targets:
    """A request is good if its first token comes within `ttft` seconds, and each further one within `tpot` on average."""

    ttft: float = 1.0
    tpot: float = 0.05


WARM = 0.15
"""Requests that arrive in this first share of a run don't count: caches start empty."""


@dataclass(slots=True)
class Outcome:
    """goodput: good requests per second of offered load after warm-up. Shares are of the requests counted; seconds are percentiles."""

    goodput: float
    good: float
    ttft_p50: float
    ttft_p99: float
    tpot_p50: float
    hit_rate: float
    retractions: int
    finished: int
    refused: int
    chosen: list[int] = field(repr=False, default_factory=list)


class Cluster:
    """Simulates a workload under a policy. `run` may be called once."""

    def __init__(self, workload: Workload, replicas: int, calibration: Calibration, policy: Policy, targets: Targets):
        self.workload = workload
        self.calibration = calibration
        self.policy = policy
        self.targets = targets
        self.now = 0.0
        self.logs = [EventLog(f"r{row}", 1) for row in range(replicas)]
        self.replicas = [
            Replica(row, calibration, self, self.logs[row].append if policy.wants_events else None) for row in range(replicas)
        ]
        count = len(workload.requests)
        self.arrived = [0.0] * count
        self.first = [-1.0] * count
        self.ended = [-1.0] * count
        self.chosen = [-1] * count
        self.sequences: dict[int, Sequence] = {}
        self._heap: list[tuple[float, int, int, Any, Any]] = []
        self._number = 0
        self._followers: dict[int, list[Request]] = {}
        self._published = [-1.0] * replicas
        self._publishing = [False] * replicas
        policy.start(self)

    # ------------------------------------------------------------------ events

    def at(self, time: float, kind: int, a: Any, b: Any = None) -> None:
        self._number += 1
        heapq.heappush(self._heap, (time, self._number, kind, a, b))

    def call(self, delay: float, function: Any, argument: Any) -> None:
        """Call function(argument) after a delay; for messages of the policy's own."""
        self.at(self.now + delay, CALL, function, argument)

    def wake(self, replica: Replica, at: float, version: int) -> None:
        self.at(at, WAKE, replica, version)

    def first_token(self, replica: Replica, sequence: Sequence, now: float) -> None:
        self.at(now + self.calibration.transit_s, FIRST, replica, sequence)

    def finished(self, replica: Replica, sequence: Sequence, now: float) -> None:
        self.at(now + self.calibration.transit_s, FINISH, replica, sequence)

    def run(self) -> Outcome:
        """Until every request has ended."""
        for request in self.workload.requests:
            if request.after >= 0:
                self._followers.setdefault(request.after, []).append(request)
            else:
                self.at(request.arrival, ARRIVE, request)
        heap, policy = self._heap, self.policy
        while heap:
            self.now, _, kind, a, b = heapq.heappop(heap)
            if kind == WAKE:
                if b == a._version:
                    a.wake(self.now, b)
                    self._touched(a)
            elif kind == ARRIVE:
                self._arrive(a)
            elif kind == SUBMIT:
                a.submit(b, self.now)
                self._touched(a)
            elif kind == FIRST:
                self.first[b.request.index] = self.now
                policy.first_token(b.request, a, self.now)
            elif kind == FINISH:
                policy.finished(b.request, a, self.now)
                self._end(b.request)
            elif kind == PUBLISH:
                self._publish(a)
            else:
                a(b)
        return self._outcome()

    def _arrive(self, request: Request) -> None:
        self.arrived[request.index] = self.now
        row = self.policy.choose(request, self.now)
        self.chosen[request.index] = -1 if row is None else row
        if row is None:
            self._end(request)
        else:
            self.at(self.now + self.calibration.transit_s, SUBMIT, self.replicas[row], request)

    def _end(self, request: Request) -> None:
        assert self.ended[request.index] < 0, "a request ended twice"
        self.ended[request.index] = self.now
        for follower in self._followers.get(request.index, ()):
            self.at(max(follower.arrival, self.now + follower.delay), ARRIVE, follower)

    # ------------------------------------------------------------------ what replicas tell

    def _touched(self, replica: Replica) -> None:
        self.policy.touched(replica)
        row = replica.row
        if self.policy.wants_events and not self._publishing[row]:
            self._publishing[row] = True
            self.at(max(self.now, self._published[row] + self.calibration.report_s), PUBLISH, replica)

    def _publish(self, replica: Replica) -> None:
        row = replica.row
        self._publishing[row] = False
        self._published[row] = self.now
        batch = self.logs[row].drain(replica.load())
        self.call(self.calibration.spread_s, self.policy.events, batch)

    # ------------------------------------------------------------------ the result

    def _outcome(self) -> Outcome:
        span, targets = self.workload.span, self.targets
        begin = WARM * span
        counted = [r for r in self.workload.requests if begin <= self.arrived[r.index] <= span]
        good = 0
        ttfts, tpots = [], []
        for request in counted:
            index = request.index
            if self.chosen[index] < 0:
                continue
            ttft = self.first[index] - self.arrived[index]
            tpot = (self.ended[index] - self.first[index]) / max(1, request.output_len - 1)
            good += ttft <= targets.ttft and tpot <= targets.tpot
            ttfts.append(ttft)
            tpots.append(tpot)
        ttfts.sort()
        tpots.sort()
        prompt = sum(replica.prompt_tokens for replica in self.replicas)
        return Outcome(
            goodput=good / (span - begin),
            good=good / max(1, len(counted)),
            ttft_p50=_percentile(ttfts, 0.5),
            ttft_p99=_percentile(ttfts, 0.99),
            tpot_p50=_percentile(tpots, 0.5),
            hit_rate=sum(replica.cached_tokens for replica in self.replicas) / max(1, prompt),
            retractions=sum(replica.retractions for replica in self.replicas),
            finished=sum(ended >= 0 for ended in self.ended),
            refused=sum(row < 0 for row in self.chosen),
            chosen=self.chosen,
        )


def _percentile(ordered: list[float], share: float) -> float:
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0
