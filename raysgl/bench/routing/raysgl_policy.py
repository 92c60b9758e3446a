"""raysgl's own routing, as it runs in the ingresses: one `Router` each, fed late and told late of each other's decisions."""

from __future__ import annotations

from typing import TYPE_CHECKING

from raysgl.bench.routing.policies import Policy
from raysgl.bench.routing.replica import Replica
from raysgl.bench.routing.requests import Request
from raysgl.messages import KVEvents
from raysgl.routing import Decision, ReplicaInfo, Router, RouteRequest

if TYPE_CHECKING:
    from raysgl.bench.routing.cluster import Cluster


class Raysgl(Policy):
    """Requests go to ingresses at random. Tokens bring an ingress the replica's load at once, the coordinator all loads and
    events after their delay."""

    wants_events = True

    def __init__(self, replicas: int, seed: int):
        super().__init__(replicas, seed)
        self._routers: list[Router] = []
        self._tickets: dict[int, tuple[Router, int]] = {}

    def start(self, cluster: Cluster) -> None:
        self._cluster = cluster
        cal = cluster.calibration
        for _ in range(cal.ingresses):
            router = Router(self.random.getrandbits(32))
            for row in range(self.replicas):
                router.join(ReplicaInfo(f"r{row}", 1, "m", "", page_size=cal.page_size, max_queued=cal.max_queued))
                router.load(f"r{row}", 1, cluster.replicas[row].load(), 0.0)
            self._routers.append(router)

    def choose(self, request: Request, now: float) -> int | None:
        router = self.random.choice(self._routers)
        (decision,) = router.choose([RouteRequest(request.hashes, request.num_tokens, session=request.session)], now)
        if not isinstance(decision, Decision):
            return None
        self._tickets[request.index] = router, decision.ticket
        if len(self._routers) > 1:
            self._cluster.call(2 * self._cluster.calibration.spread_s, self._tell, (router, decision))
        return int(decision.replica[1:])

    def _tell(self, news: tuple[Router, Decision]) -> None:
        sender, decision = news
        for router in self._routers:
            if router is not sender:
                router.routed(decision.replica, decision.epoch, decision.tokens, decision.new_hashes, self._cluster.now)

    def first_token(self, request: Request, replica: Replica, now: float) -> None:
        router, ticket = self._tickets[request.index]
        router.first_token(ticket, now)
        router.load(f"r{replica.row}", 1, replica.load(), now)

    def finished(self, request: Request, replica: Replica, now: float) -> None:
        router, ticket = self._tickets.pop(request.index)
        router.finish(ticket, now)
        router.load(f"r{replica.row}", 1, replica.load(), now)

    def events(self, batch: KVEvents) -> None:
        for router in self._routers:
            router.events(batch, self._cluster.now)
