"""Ray Serve's autoscaler, driven by `raysgl.routing.scaling`: the policy runs in Serve's controller, on what replicas say of themselves.

Serve calls `EngineReplica.record_autoscaling_stats` every `REPORT_S` and the policy ten times a second. A model without
replicas is woken by a call of its deployment (`EngineReplica.wake`) that waits in the ingress's handle. Decisions are told to the
coordinator, which passes them on to the ingresses (GET /v1/loads).
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Any

import msgspec
import ray

from raysgl.actors import coordinator
from raysgl.config import AutoscalingConfig
from raysgl.messages import Load
from raysgl.overview import ScalingDecision
from raysgl.routing.scaling import ReplicaLoad, Scaler, figures

if TYPE_CHECKING:
    from ray.serve.config import AutoscalingContext

log = logging.getLogger("ray.serve")
"""The controller's own log, where Serve writes its scaling decisions too."""

REPORT_S = 1.0
ENVIRONMENT = {"RAY_SERVE_REPLICA_AUTOSCALING_METRIC_PUSH_INTERVAL_S": str(REPORT_S)}
"""Of the replicas; Serve's default is 10 s."""
REPEAT_S = 10.0
"""A decision that Serve has not carried out yet is made again ten times a second; it is told as often as this."""


def stats(load: Load) -> dict[str, float]:
    """A `ReplicaLoad`, as Serve carries it."""
    return {
        "queued_tokens": load.queued_tokens,
        "queue_seconds": load.queued_tokens / load.prefill_rate if load.prefill_rate else 0.0,
        "used_pages": load.total_pages - load.free_pages - load.cached_pages,
        "hot_pages": load.hot_pages,
        "total_pages": load.total_pages,
        "ttft": load.ttft,
        "busy": float(load.running + load.waiting > 0),
    }


class TokenPolicy:
    """A policy class for Serve's `AutoscalingPolicy`. model: its name. settings: the fields of an `AutoscalingConfig`."""

    def __init__(self, model: str, settings: dict[str, Any]):
        self._model = model
        self._scaler = Scaler(AutoscalingConfig(**settings))
        self._seen_and_answered = (-1, -1)
        self._held_before = False
        self._told = (0, 0)
        self._told_at = float("-inf")

    def __call__(self, context: AutoscalingContext) -> tuple[int, dict[str, Any]]:
        replicas: dict[Any, dict[str, float]] = {}
        for name, series in (context.raw_metrics or {}).items():
            for replica, points in series.items():
                if points:
                    replicas.setdefault(replica, {})[name] = points[-1].value
        loads = [ReplicaLoad(**{**values, "busy": bool(values["busy"])}) for values in replicas.values() if "busy" in values]
        current = context.target_num_replicas
        if self._seen_and_answered == (0, 0) and current:  # Serve does this by itself, and does not ask a policy
            self._tell(context, loads, 0, current, "a request came while there was no replica")
        wanted = self._scaler.decide(loads, current, context.total_queued_requests > 0, time.monotonic())
        held = self._scaler.held
        if wanted != current or (held and not self._held_before):
            self._tell(context, loads, current, wanted, self._scaler.why)
        self._seen_and_answered, self._held_before = (current, wanted), held
        return wanted, {}

    def _tell(self, context: AutoscalingContext, loads: list[ReplicaLoad], before: int, after: int, why: str) -> None:
        now = time.monotonic()
        if (before, after) == self._told and now < self._told_at + REPEAT_S:
            return
        self._told, self._told_at = (before, after), now
        log.info("%s: %d -> %d replicas: %s", context.deployment_name, before, after, why)
        decision = ScalingDecision(self._model, time.time(), before, after, why, figures(loads))
        try:
            name = coordinator.actor_name(context.app_name)
            ray.get_actor(name, namespace=coordinator.NAMESPACE).scaled.remote(msgspec.msgpack.encode(decision))
        except Exception:  # whatever it is, scaling goes on
            log.warning("the coordinator was not told of it", exc_info=True)
