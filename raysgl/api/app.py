"""The FastAPI application over a `Backend`: routes and their description, made from the table in `raysgl.api.endpoints`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request
from fastapi.openapi.utils import get_openapi
from pydantic.json_schema import models_json_schema
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response

import raysgl
from raysgl.api import operations, responses
from raysgl.api.backend import Backend
from raysgl.api.call import Calls, current
from raysgl.api.endpoints import ENDPOINTS, Endpoint
from raysgl.api.errors import ApiError
from raysgl.api.http import Gate, HandlerResponse
from raysgl.api.keys import Access, KeyRing
from raysgl.api.limits import UNITS, Limits
from raysgl.api.metrics import Metrics
from raysgl.api.request_log import log_request
from raysgl.api.service import Service
from raysgl.api.tracing import Traces, otlp_exporter
from raysgl.config import ServerConfig

NO_TELEMETRY = {"tracing": False, "metrics": False, "logs": False, "auto_configure": False}
"""FastAPI's own OpenTelemetry hooks, on by default where OpenTelemetry is installed, as it is with Ray."""

EXPOSED = ["x-request-id", "retry-after", *(f"x-ratelimit-{a}-{b}" for a in ("limit", "remaining", "reset") for b in UNITS)]
"""Headers of answers that web pages may read."""


def create_app(backend: Backend, settings: ServerConfig | None = None, ingress: str | None = None) -> FastAPI:
    """The application. ingress: its name, where there are several.

    `app.state.gate` (`raysgl.api.http.Gate`) counts open requests and drains; `app.state.service` is what the endpoints share.
    """
    gate = Gate()
    settings = settings or ServerConfig()
    metrics = Metrics(backend, lambda: gate.open, settings.metrics_names, ingress)
    service = Service(backend, settings, gate, metrics, KeyRing(settings), Limits(settings.num_ingress))
    traces = _traces(settings)
    app = FastAPI(
        title="raysgl",
        version=raysgl.__version__,
        description=raysgl.__doc__ or "",
        openapi_url=None,
        lifespan=_lifespan(traces),
        telemetry=NO_TELEMETRY,
    )
    observers = [metrics.observe, log_request, *([traces.observe] if traces else ())]
    app.state.gate, app.state.service = gate, service
    if settings.cors_allow_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_allow_origins,
            allow_methods=["*"],
            allow_headers=["*"],
            expose_headers=EXPOSED,
        )
    app.add_middleware(Calls, observers=observers)
    for row in ENDPOINTS:
        _add(app, row, service)
    _add_errors(app)
    app.openapi = lambda: _openapi(app)  # type: ignore[method-assign]
    return app


def _traces(settings: ServerConfig) -> Traces | None:
    if settings.otlp_traces_endpoint is None:
        return None
    return Traces(otlp_exporter(settings.otlp_traces_endpoint), settings.otlp_traces_sample_ratio)


def _lifespan(traces: Traces | None) -> Callable[[FastAPI], AbstractAsyncContextManager[None]]:
    @asynccontextmanager
    async def run(app: FastAPI) -> AsyncIterator[None]:
        yield
        if traces is not None:
            await asyncio.to_thread(traces.close)

    return run


def _add(app: FastAPI, row: Endpoint, service: Service) -> None:
    run = _run(row, service)
    error = responses.ErrorResponse if row.error_body is ApiError.body else responses.AnthropicError
    answers: dict[int | str, dict[str, Any]] = {200: {"content": {media: {} for media in row.media}}}
    answers |= {"4XX": {"model": error}, "5XX": {"model": error}}
    if row.response is not None:
        answers[200]["model"] = row.response
    for i, method in enumerate(row.methods):
        app.add_api_route(
            row.path,
            run,
            methods=[method],
            name=row.path,
            summary=row.path,
            description=row.view.__doc__ if row.view else None,
            response_model=None,
            response_class=Response,
            responses=answers,
            openapi_extra={"parameters": list(row.parameters)},
            include_in_schema=not row.hidden and i == 0,
        )


def _run(row: Endpoint, service: Service) -> Callable[[Request], Awaitable[Response]]:
    """What FastAPI calls: the key's check, then the row's handler or view."""
    handler = row.handler(service) if row.handler else None
    most = service.settings.max_body_bytes
    limit = min(row.body_limit or most, most)

    async def answer(request: Request) -> Response:
        call = current()
        call.path, call.quiet = row.path, row.access is Access.OPEN
        try:
            call.key = service.keys.authorize(row.access, call.headers)
            if handler is None:
                return await row.view(service, request)
        except ApiError as error:
            return _error(error, row.error_body)
        if call.key is not None:
            call.allowance = service.limits.of(call.key)
        return HandlerResponse(handler, limit, row.error_body)

    return answer


def _error(error: ApiError, body: Callable[[ApiError], bytes] = ApiError.body) -> Response:
    headers = {name.decode(): value.decode() for name, value in error.headers()}
    return Response(body(error), error.status, headers, "application/json")


def _add_errors(app: FastAPI) -> None:
    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> Response:
        """No such path or method."""
        if error.status_code == 404:
            shaped = operations.not_found(request.url.path)
        else:
            shaped = ApiError(error.status_code, f"{request.method} {request.url.path[:200]}: {error.detail}")
        return Response(shaped.body(), shaped.status, error.headers, "application/json")


def _openapi(app: FastAPI) -> dict[str, Any]:
    """FastAPI's description, and the request bodies, which it does not see since handlers read them themselves."""
    if app.openapi_schema:
        return app.openapi_schema
    schema = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
    rows = [row for row in ENDPOINTS if row.requests and not row.hidden]
    kinds = [kind for row in rows for kind in row.requests]
    _, definitions = models_json_schema([(kind, "validation") for kind in kinds], ref_template="#/components/schemas/{model}")
    schema["components"]["schemas"].update(definitions["$defs"])
    for row in rows:
        refs = [{"$ref": f"#/components/schemas/{kind.__name__}"} for kind in row.requests]
        body = refs[0] if len(refs) == 1 else {"anyOf": refs}
        content = {"application/json": {"schema": body}}
        schema["paths"][row.path][row.methods[0].lower()]["requestBody"] = {"required": True, "content": content}
    app.openapi_schema = schema
    return schema
