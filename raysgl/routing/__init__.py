"""Where a request should go: the global prefix index, the cost model, and the state that coordinator and ingresses share.

Pure Python over `raysgl.messages`; imports neither ray nor torch. `raysgl.actors` wraps `CoordinatorState` in an actor and gives
every ingress a `Mirror`.
"""

from raysgl.routing.audit import CacheView, Views, compare
from raysgl.routing.coordinator_state import CoordinatorState
from raysgl.routing.index import Applied, PrefixIndex
from raysgl.routing.messages import ReplicaInfo, Reply, Routed, Updates
from raysgl.routing.mirror import Mirror
from raysgl.routing.router import Decision, Refusal, Router, RouteRequest

__all__ = [
    "Applied",
    "CacheView",
    "CoordinatorState",
    "Decision",
    "Mirror",
    "PrefixIndex",
    "Refusal",
    "ReplicaInfo",
    "Reply",
    "RouteRequest",
    "Routed",
    "Router",
    "Updates",
    "Views",
    "compare",
]
