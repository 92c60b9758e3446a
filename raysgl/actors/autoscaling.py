"""Ray Serve's autoscaler, driven by `raysgl.routing.scaling`: the policy runs in Serve's controller, on what replicas say of themselves.

Serve calls `EngineReplica.record_autoscaling_stats` every `REPORT_S` and the policy ten times a second. A model without
replicas is woken by a call of its deployment (`EngineReplica.wake`) that waits in the ingress's handle.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Any

from raysgl.config import AutoscalingConfig
from raysgl.messages import Load
from raysgl.routing.scaling import ReplicaLoad, Scaler

if TYPE_CHECKING:
    from ray.serve.config import AutoscalingContext

log = logging.getLogger("ray.serve")
"""The controller's own log, where Serve writes its scaling decisions too."""

REPORT_S = 1.0
ENVIRONMENT = {"RAY_SERVE_REPLICA_AUTOSCALING_METRIC_PUSH_INTERVAL_S": str(REPORT_S)}
"""Of the replicas; Serve's default is 10 s."""


def stats(load: Load) -> dict[str, float]:
    """A `ReplicaLoad`, as Serve carries it."""
    return {
        "queue_seconds": load.queued_tokens / load.prefill_rate if load.prefill_rate else 0.0,
        "used_pages": load.total_pages - load.free_pages - load.cached_pages,
        "hot_pages": load.hot_pages,
        "total_pages": load.total_pages,
        "ttft": load.ttft,
        "busy": float(load.running + load.waiting > 0),
    }


class TokenPolicy:
    """A policy class for Serve's `AutoscalingPolicy`; its arguments are the fields of an `AutoscalingConfig`."""

    def __init__(self, **settings: Any):
        self._scaler = Scaler(AutoscalingConfig(**settings))

    def __call__(self, context: AutoscalingContext) -> tuple[int, dict[str, Any]]:
        replicas: dict[Any, dict[str, float]] = {}
        for name, series in (context.raw_metrics or {}).items():
            for replica, points in series.items():
                if points:
                    replicas.setdefault(replica, {})[name] = points[-1].value
        loads = [ReplicaLoad(**{**values, "busy": bool(values["busy"])}) for values in replicas.values() if "busy" in values]
        current = context.target_num_replicas
        wanted = self._scaler.decide(loads, current, context.total_queued_requests > 0, time.monotonic())
        if wanted != current:
            log.info("%s: %d -> %d replicas: %s", context.deployment_name, current, wanted, self._scaler.why)
        return wanted, {}
