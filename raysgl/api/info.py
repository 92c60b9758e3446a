"""What the server says of itself: models, settings, and how busy each replica is. Names and shapes are SGLang's."""

from __future__ import annotations

import time
from array import array
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

import msgspec
import orjson
from prometheus_client import CollectorRegistry, Gauge, generate_latest
from starlette.requests import Request
from starlette.responses import Response

import raysgl
from raysgl.api.errors import bad_request, model_not_found
from raysgl.api.served_model import ServedModel
from raysgl.api.service import Service
from raysgl.messages import DEFAULT_VERSION, Load, ReplicaFacts
from raysgl.overview import HotPrefix, ScalingDecision

STARTED_AT = time.time()
SECTIONS = ("core", "memory", "queues")
"""Of each replica."""
MODEL_SECTIONS = ("prefixes", "scaling")
"""Of each model."""
INCLUDE = (*SECTIONS, *MODEL_SECTIONS)
"""What /v1/loads can include, beside `all`."""
SECRET = ("api_key", "admin_api_key", "key_file", "keyfile", "password")
"""Ends of the names of settings that nobody is told."""


async def model_info(service: Service, request: Request) -> Response:
    """A model's facts."""
    model = service.model(request.query_params.get("model"))
    return _json(_model_info(model, service.backend.loads().get(model.name, {}).values()))


async def server_info(service: Service, request: Request) -> Response:
    """Every setting of the server and of a model's engine, and the state of the model's replicas."""
    name = request.query_params.get("model")
    return _json(_server_info(service, service.first_model() if name is None else service.model(name)))


def _json(value: Any) -> Response:
    return Response(orjson.dumps(value), media_type="application/json")


def _model_info(model: ServedModel, loads: Iterable[Load]) -> dict[str, Any]:
    """Where replicas have different weights, both names with a comma between: nobody is to take them for the same."""
    settings = _settings(model)
    weights = dict.fromkeys(_weights(model, load) for load in loads) or {_weights(model, Load()): None}
    return {
        "model_path": ", ".join(dict.fromkeys(path for path, _ in weights)),
        "served_model_name": model.name,
        "tokenizer_path": settings.get("tokenizer_path") or model.model_path,
        "is_generation": model.pooling is None,
        "preferred_sampling_params": model.defaults or None,
        "weight_version": ", ".join(dict.fromkeys(version for _, version in weights)),
        "load_format": settings.get("load_format", "auto"),
        "reasoning_parser": model.reasoning_parser,
        "tool_call_parser": model.tool_call_parser,
        "disaggregation_mode": "null",
        "has_image_understanding": False,
        "has_audio_understanding": False,
        "model_type": model.model_type,
        "architectures": list(model.architectures),
    }


def _weights(model: ServedModel, load: Load) -> tuple[str, str]:
    """A replica's: where they are from, and what they are called."""
    if load.weights is None:
        return model.model_path, DEFAULT_VERSION
    return load.weights.model_path, load.weights.version


def _server_info(service: Service, model: ServedModel) -> dict[str, Any]:
    """Settings by name, and in `internal_states` one object for each of the model's replicas."""
    server = service.settings.model_dump(mode="json")
    loads = service.backend.loads().get(model.name, {})
    replicas = service.backend.replicas().get(model.name, {})
    return {
        **_public(server),
        **_settings(model),
        "served_model_name": model.name,
        "max_total_num_tokens": model.max_total_tokens,
        "max_req_input_len": model.token_limit()[0] - 1,
        "startup_time": STARTED_AT,
        "version": raysgl.__version__,
        "internal_states": [
            _internal_state(model, name, facts, loads.get(name, Load())) for name, facts in sorted(replicas.items())
        ],
    }


def _internal_state(model: ServedModel, replica: str, facts: ReplicaFacts, load: Load) -> dict[str, Any]:
    path, version = _weights(model, load)
    return _settings(model) | {
        "replica": replica,
        "model_path": path,
        "weight_version": version,
        "node": facts.node,
        "device": facts.device,
        "world_size": facts.tp_size,
        "effective_max_running_requests_per_dp": facts.max_running,
        "last_gen_throughput": load.decode_rate,
        "memory_usage": {"token_capacity": facts.max_total_tokens},
        "released_memory": list(load.released),
        "started_at": facts.started_at,
        "startup_seconds": facts.startup,
        "disaggregation_mode": "null",
    }


def _settings(model: ServedModel) -> dict[str, Any]:
    return {} if model.config is None else _public(model.config.model_dump(mode="json"))


def _public(settings: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if not name.endswith(SECRET)}


# ------------------------------------------------------------------ loads


async def loads(service: Service, request: Request) -> Response:
    """How busy each replica is, what is found cached and how the fleet was scaled; `format=prometheus` for text of the first."""
    query = request.query_params
    for name in query:
        if name not in ("include", "format", "model"):
            raise bad_request(f"Unknown query parameter: {name[:40]}", name[:40], "unknown_parameter")
    sections = [part.strip() for part in query.get("include", "all").split(",")]
    for section in sections:
        if section not in (*INCLUDE, "all"):
            raise bad_request(f"include has {section[:40]!r}, but must be some of all, {', '.join(INCLUDE)}", "include")
    if (form := query.get("format", "json")) not in ("json", "prometheus"):
        raise bad_request(f"format is {form[:40]!r}, but must be json or prometheus", "format")
    if (only := query.get("model")) is not None and only not in service.backend.models:
        raise model_not_found(only)
    models = [model for name, model in service.models().items() if only in (None, name)]
    found = [
        (model, replica, load)
        for model in models
        for replica, load in sorted(service.backend.loads().get(model.name, {}).items())
    ]
    if form == "prometheus":
        return Response(_prometheus(found), media_type="text/plain; version=0.0.4; charset=utf-8")
    chosen = INCLUDE if "all" in sections else sections
    facts = [facts for replicas in service.backend.replicas().values() for facts in replicas.values()]
    now = datetime.now(UTC).isoformat()
    body: dict[str, Any] = {
        "timestamp": now,
        "version": raysgl.__version__,
        "accelerator": ", ".join(sorted({fact.device for fact in facts})),
        "num_accelerators": sum(fact.tp_size for fact in facts),
        "loads": [
            {"timestamp": now, "dp_rank": i, "model": model.name, "replica": replica} | _load(model, load, chosen)
            for i, (model, replica, load) in enumerate(found)
        ],
    }
    if "prefixes" in chosen:
        hot = service.backend.hot_prefixes()
        body["hot_prefixes"] = [_hot_prefix(model, prefix) for model in models for prefix in hot.get(model.name, ())]
    if "scaling" in chosen:
        made = service.backend.scaling_decisions()
        body["scaling_decisions"] = [_scaling_decision(decision) for model in models for decision in made.get(model.name, ())]
    return _json(body)


def _hot_prefix(model: ServedModel, prefix: HotPrefix) -> dict[str, Any]:
    """`text` only where the server is set to show it; the last token may be cut within a character."""
    shown: dict[str, Any] = {
        "model": model.name,
        "hash": f"{prefix.hash:016x}",
        "tokens": prefix.tokens,
        "replicas": prefix.replicas,
        "hits_per_second": prefix.hits_per_second,
        "saved_tokens_per_second": prefix.hits_per_second * prefix.tokens,
    }
    if prefix.beginning:
        ids = array("i", prefix.beginning).tolist()
        shown["text"] = model.tokenizer.decode(ids, skip_special_tokens=False).rstrip("\ufffd")
    return shown


def _scaling_decision(decision: ScalingDecision) -> dict[str, Any]:
    return {
        "timestamp": datetime.fromtimestamp(decision.at, UTC).isoformat(),
        "model": decision.model,
        "from": decision.before,
        "to": decision.after,
        "reason": decision.why,
        "figures": msgspec.structs.asdict(decision.figures),
    }


def _load(model: ServedModel, load: Load, sections: tuple[str, ...] | list[str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if "core" in sections:
        found |= _core(model, load)
    if "memory" in sections:
        found["memory"] = {
            "token_capacity": load.total_pages * model.page_size,
            "free_tokens": load.free_pages * model.page_size,
            "cached_tokens": load.cached_pages * model.page_size,
            "hot_tokens": load.hot_pages * model.page_size,
            "released": list(load.released),
        }
    if "queues" in sections:
        found["queues"] = {
            "waiting": load.waiting,
            "expected_wait": load.queue_seconds,
            "full": load.full,
            "retractions": load.retractions,
        }
    return found


def _core(model: ServedModel, load: Load) -> dict[str, float]:
    used = load.total_pages - load.free_pages - load.cached_pages
    return {
        "num_running_reqs": load.running,
        "num_waiting_reqs": load.waiting,
        "num_waiting_uncached_tokens": load.queued_tokens,
        "num_used_tokens": used * model.page_size,
        "num_total_tokens": used * model.page_size + load.queued_tokens,
        "max_total_num_tokens": load.total_pages * model.page_size,
        "max_running_requests": load.max_running,
        "token_usage": used / load.total_pages if load.total_pages else 0.0,
        "gen_throughput": load.decode_rate,
        "prefill_throughput": load.prefill_rate,
        "time_to_first_token": load.ttft,
        "cache_hit_rate": load.cached_tokens / load.prompt_tokens if load.prompt_tokens else 0.0,
        "utilization": load.running / load.max_running if load.max_running else 0.0,
    }


def _prometheus(found: list[tuple[ServedModel, str, Load]]) -> bytes:
    registry = CollectorRegistry()
    gauges: dict[str, Gauge] = {}
    for model, replica, load in found:
        for name, value in _core(model, load).items():
            if name not in gauges:
                gauges[name] = Gauge(f"sglang:{name}", name.replace("_", " "), ["model_name", "replica"], registry=registry)
            gauges[name].labels(model.name, replica).set(value)
    return generate_latest(registry)
