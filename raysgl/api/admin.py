"""What changes a running server: profiles of its steps, its weights, the memory it holds, how much it logs."""

from __future__ import annotations

import time
from pathlib import PurePosixPath
from typing import Any

import orjson
from starlette.datastructures import Headers
from starlette.types import Receive

from raysgl import logs
from raysgl.api.errors import bad_request, unavailable
from raysgl.api.http import Handler, Reply, read_body
from raysgl.api.protocol import (
    ConfigureLoggingRequest,
    MemoryRequest,
    StartProfileRequest,
    StopProfileRequest,
    T,
    UpdateWeightsRequest,
    parse_json,
    validate,
)
from raysgl.api.served_model import ServedModel
from raysgl.api.service import Service
from raysgl.config import EngineConfig
from raysgl.messages import MEMORY_TAGS, LogSettings, MemoryChange, ProfileRequest, WeightsUpdate


def start_profile(service: Service) -> Handler:
    """The handler of POST /start_profile."""

    async def handle(headers: Headers, receive: Receive, reply: Reply) -> None:
        request = await _read(headers, receive, StartProfileRequest)
        model = service.first_model() if request.model is None else service.model(request.model)
        profile = ProfileRequest(
            folder=_folder(model, request.output_dir),
            profile_id=request.profile_id or str(time.time()),
            activities=request.activities or ["CPU", "GPU"],
            num_steps=request.num_steps or 0,
            with_stack=bool(request.with_stack),
            record_shapes=bool(request.record_shapes),
        )
        await _answer(await service.backend.profile(profile, request.model), reply, "profile_failed")

    return handle


def stop_profile(service: Service) -> Handler:
    """The handler of POST /stop_profile."""

    async def handle(headers: Headers, receive: Receive, reply: Reply) -> None:
        request = await _read(headers, receive, StopProfileRequest)
        if request.model is not None:
            service.model(request.model)
        await _answer(await service.backend.profile(None, request.model), reply, "profile_failed")

    return handle


def release_memory(service: Service) -> Handler:
    """The handler of POST /release_memory_occupation."""
    return _change_memory(service, release=True)


def resume_memory(service: Service) -> Handler:
    """The handler of POST /resume_memory_occupation."""
    return _change_memory(service, release=False)


def _change_memory(service: Service, release: bool) -> Handler:
    async def handle(headers: Headers, receive: Receive, reply: Reply) -> None:
        request = await _read(headers, receive, MemoryRequest)
        if request.model is not None:
            service.model(request.model)
        change = MemoryChange(release, request.tags or list(MEMORY_TAGS))
        await _answer(await service.backend.change_memory(change, request.model), reply, "memory_unchanged")

    return handle


def update_weights(service: Service) -> Handler:
    """The handler of POST /update_weights_from_disk."""

    async def handle(headers: Headers, receive: Receive, reply: Reply) -> None:
        request = await _read(headers, receive, UpdateWeightsRequest)
        update = WeightsUpdate(
            request.model_path,
            request.load_format or "auto",
            request.weight_version,
            abort_all=request.abort_all_requests,
            flush_cache=request.flush_cache,
            recapture=request.recapture_cuda_graph,
            empty_cache=request.torch_empty_cache,
        )
        done = await service.backend.update_weights(update, service.model(request.model).name)
        messages = "; ".join(dict.fromkeys(message for _, message in done.values()))
        shown = {"success": all(ok for ok, _ in done.values()), "message": messages}
        await _answer(done, reply, "weights_unchanged", shown)

    return handle


def configure_logging(service: Service) -> Handler:
    """The handler of POST /configure_logging."""

    async def handle(headers: Headers, receive: Receive, reply: Reply) -> None:
        request = await _read(headers, receive, ConfigureLoggingRequest)
        change = LogSettings(request.log_level, request.log_format, request.log_requests, request.log_requests_level)
        if change == LogSettings():
            raise bad_request(
                "log_level, or what else is to be changed, is required", "log_level", "missing_required_parameter"
            )
        await service.backend.set_logs(change)
        now = logs.now
        await reply.whole(
            orjson.dumps(
                {
                    "log_level": now.level,
                    "log_format": now.form,
                    "log_requests": now.requests,
                    "log_requests_level": now.requests_level,
                }
            )
        )

    return handle


async def _read(headers: Headers, receive: Receive, kind: type[T]) -> T:
    """The request; an empty body is an empty request. ApiError."""
    body = await read_body(headers, receive)
    return validate(kind, parse_json(body or b"{}"))


def _folder(model: ServedModel, asked: str | None) -> str:
    """Clients choose folders inside the setting's alone: they must not be able to write anywhere else. ApiError 400."""
    root = PurePosixPath((model.config or EngineConfig(model_path=model.model_path)).profile_dir)
    folder = root / (asked or "")
    if ".." in folder.parts or not folder.is_relative_to(root):
        raise bad_request(f"output_dir must be a folder inside {root}", "output_dir")
    return str(folder)


async def _answer(done: dict[str, tuple[bool, str]], reply: Reply, failed: str, more: dict[str, Any] | None = None) -> None:
    """What each replica said, and `more`. failed: the code of the error where one did not do it."""
    if not done:
        raise unavailable("no replica is there")
    replicas = {replica: {"ok": ok, "message": message} for replica, (ok, message) in done.items()}
    problems = [f"{replica}: {message}" for replica, (ok, message) in done.items() if not ok]
    error = {"error": bad_request("; ".join(problems), code=failed).info()} if problems else {}
    await reply.whole(orjson.dumps((more or {}) | {"replicas": replicas} | error), 400 if problems else 200)
