"""The application: which deployments there are and how they are placed. The only place where they are wired.

serve run serve_configs/llama.yaml        # Ray Serve's own command
raysgl serve serve_configs/llama.yaml     # ours: shows progress, exits with a reason, drains
"""

# No `from __future__ import annotations`: Serve reads the annotation of `build`'s argument to make it, and takes no strings.

import re
from typing import Any

import ray
from ray import serve
from ray.serve import Application

from raysgl.actors import autoscaling
from raysgl.actors.ingress import Ingress
from raysgl.actors.replica import EngineReplica
from raysgl.config import AppConfig, ModelConfig, ServerConfig
from raysgl.logs import log_settings

HEALTH_PERIOD_S = 1.0
"""Ray Serve's default of 10 s means 11 s to replace a dead replica; this means 2."""
HEALTH_TIMEOUT_S = 30.0
MAX_ONGOING = 1_000_000
"""Admission is ours (`max_queued_requests`); Serve's default of 5 would throttle requests through its proxy."""
STOP_MARGIN_S = 5.0
SMALLEST_CPU = 0.001
"""A bundle of no resources at all is not allowed."""


def build(args: AppConfig) -> Application:
    """The whole application: an ingress, and one deployment of replicas for each model. `args` is a config file's `args:`."""
    engines = [_replicas(model, i, args.server) for i, model in enumerate(args.models)]
    ingress = serve.deployment(serve.ingress()(Ingress)).options(
        name="Ingress",
        num_replicas=args.server.num_ingress,
        max_ongoing_requests=MAX_ONGOING,
        health_check_period_s=HEALTH_PERIOD_S,
        health_check_timeout_s=HEALTH_TIMEOUT_S,
        graceful_shutdown_wait_loop_s=0.1,
        graceful_shutdown_timeout_s=args.server.drain_timeout_s + STOP_MARGIN_S,
        max_surge_percent=100,  # an update starts new ones first; they share the port with the old
        ray_actor_options={"num_cpus": 0},
    )
    # Serve deploys what the ingress is bound to; it talks to the engines over its own sockets, not through these handles.
    return ingress.bind(args, *engines)


def _replicas(model: ModelConfig, index: int, server: ServerConfig) -> Application:
    device = device_of(model)
    labels = {"placement_group_bundle_label_selector": [model.node_labels] * model.engine.tp_size} if model.node_labels else {}
    return (
        serve.deployment(EngineReplica)
        .options(
            name=deployment_name(model, index),
            **_scale(model),
            max_ongoing_requests=MAX_ONGOING,
            health_check_period_s=HEALTH_PERIOD_S,
            health_check_timeout_s=HEALTH_TIMEOUT_S,
            graceful_shutdown_wait_loop_s=0.1,
            graceful_shutdown_timeout_s=model.drain_timeout_s + STOP_MARGIN_S,
            max_surge_percent=model.max_surge_percent,
            placement_group_bundles=bundles(model, device),
            placement_group_strategy=model.placement_strategy,
            **labels,
        )
        .bind(model, device, log_settings(server), server.coordinator_shards)
    )


def deployment_name(model: ModelConfig, index: int) -> str:
    """Of the config's model number `index`."""
    return f"Engine-{index}-{re.sub(r'[^A-Za-z0-9_.-]', '-', model.engine.name)}"


def _scale(model: ModelConfig) -> dict[str, Any]:
    """Deployment options that say how many replicas there are."""
    actor = {"num_cpus": 0}
    if model.autoscaling is None:
        return {"num_replicas": model.num_replicas, "ray_actor_options": actor}
    scaling = model.autoscaling
    return {
        "autoscaling_config": {
            "min_replicas": scaling.min_replicas,
            "initial_replicas": model.num_replicas,
            "max_replicas": scaling.max_replicas,
            **dict.fromkeys(("upscale_delay_s", "downscale_delay_s", "downscale_to_zero_delay_s"), 0),  # the policy has its own
            "policy": {
                "policy_function": "raysgl.actors.autoscaling:TokenPolicy",
                "policy_kwargs": {"model": model.engine.name, "settings": scaling.model_dump()},
            },
        },
        "ray_actor_options": {**actor, "runtime_env": {"env_vars": autoscaling.ENVIRONMENT}},
    }


def device_of(model: ModelConfig) -> str:
    """`auto` is cuda where the cluster has a GPU."""
    if model.engine.device != "auto":
        return model.engine.device
    return "cuda" if ray.is_initialized() and ray.cluster_resources().get("GPU", 0) >= 1 else "cpu"


def bundles(model: ModelConfig, device: str) -> list[dict[str, float]]:
    """One bundle for each shard of a replica. The replica's own actor lives in the first and takes nothing of it."""
    bundle = {"CPU": max(model.num_cpus_per_shard, SMALLEST_CPU)}
    if device == "cuda":
        bundle["GPU"] = 1
    return [dict(bundle) for _ in range(model.engine.tp_size)]
