"""The FastAPI application over a `Backend`: which path goes where, and what /docs says about it."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI, Request
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema
from starlette.exceptions import HTTPException
from starlette.responses import Response

import raysgl
from raysgl.api import generate, native, native_protocol, operations, protocol, responses
from raysgl.api.anthropic import endpoints as anthropic
from raysgl.api.anthropic import protocol as anthropic_protocol
from raysgl.api.backend import Backend
from raysgl.api.errors import ApiError
from raysgl.api.http import Endpoint, Gate, Handler, RequestIds
from raysgl.api.metrics import Metrics
from raysgl.api.responses_api import endpoints as responses_api
from raysgl.api.responses_api import protocol as responses_protocol
from raysgl.api.service import Service
from raysgl.config import ServerConfig

NO_TELEMETRY = {"tracing": False, "metrics": False, "logs": False, "auto_configure": False}
"""FastAPI's own OpenTelemetry hooks, on by default where OpenTelemetry is installed, as it is with Ray."""

REQUEST_TYPES: dict[str, tuple[type[BaseModel], ...]] = {
    "/v1/chat/completions": (protocol.ChatCompletionRequest,),
    "/v1/completions": (protocol.CompletionRequest,),
    "/v1/responses": (responses_protocol.ResponsesRequest,),
    "/v1/messages": (anthropic_protocol.MessagesRequest,),
    "/v1/messages/count_tokens": (anthropic_protocol.CountTokensRequest,),
    "/generate": (native_protocol.GenerateRequest,),
    "/tokenize": (protocol.TokenizeRequest, protocol.TokenizeChatRequest),
    "/detokenize": (protocol.DetokenizeRequest,),
    "/abort_request": (protocol.AbortRequest,),
}


def create_app(backend: Backend, settings: ServerConfig | None = None) -> FastAPI:
    """The application. `app.state.gate` (`raysgl.api.http.Gate`) counts open requests and drains; `app.state.service` is
    what the endpoints share."""
    gate = Gate()
    service = Service(backend, settings or ServerConfig(), gate, Metrics(backend, lambda: gate.open))
    app = FastAPI(
        title="raysgl", version=raysgl.__version__, description=raysgl.__doc__ or "", redoc_url=None, telemetry=NO_TELEMETRY
    )
    app.state.gate, app.state.service = gate, service
    app.add_middleware(RequestIds)
    _add_posts(app, service)
    _add_gets(app, service)
    _add_errors(app)
    app.openapi = lambda: _openapi(app)  # type: ignore[method-assign]
    return app


def _add_posts(app: FastAPI, service: Service) -> None:
    def post(path: str, handler: Handler, response_model: Any, hidden: bool = False, methods: tuple = ("POST",)) -> None:
        async def endpoint(request: Request) -> Response:
            return Endpoint(handler)

        app.add_api_route(
            path,
            endpoint,
            methods=methods,
            name=path,
            summary=path,
            response_model=None,
            responses={200: {"model": response_model}, "4XX": {"model": responses.ErrorResponse}},
            include_in_schema=not hidden,
        )

    post("/v1/chat/completions", generate.chat_completions(service), responses.ChatCompletion)
    post("/v1/completions", generate.completions(service), responses.Completion)
    post("/v1/responses", responses_api.create_response(service), responses.Response)
    post("/v1/messages", anthropic.messages(service), responses.Message)
    post("/v1/messages/count_tokens", anthropic.count_tokens(service), responses.InputTokens)
    post("/generate", native.generate(service), responses.Generated | list[responses.Generated])
    post("/generate", native.generate(service), responses.Generated, hidden=True, methods=("PUT",))
    for prefix in ("", "/v1"):
        post(f"{prefix}/tokenize", operations.tokenize(service), responses.TokenizeResponse, hidden=bool(prefix))
        post(f"{prefix}/detokenize", operations.detokenize(service), responses.DetokenizeResponse, hidden=bool(prefix))
    post("/abort_request", operations.abort_request(service), responses.AbortResponse)


def _add_gets(app: FastAPI, service: Service) -> None:
    @app.get("/")
    async def banner() -> dict[str, Any]:
        return operations.banner(service)

    @app.get("/v1/models", responses={200: {"model": responses.ModelList}})
    async def models() -> dict[str, Any]:
        return operations.list_models(service)

    @app.get("/v1/models/{model_id:path}", responses={200: {"model": responses.ModelCard}})
    async def model(model_id: str) -> dict[str, Any]:
        return operations.get_model(service, model_id)

    @app.get("/health")
    async def health() -> Response:
        """The process is alive."""
        return Response()

    @app.get("/ready")
    async def ready() -> Response:
        """Every model has a replica, and the server is not stopping."""
        return Response(status_code=200 if service.backend.ready() and not service.gate.draining else 503)

    @app.get("/metrics")
    async def metrics() -> Response:
        """Prometheus text format, with SGLang's names."""
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.get("/flush_cache", include_in_schema=False)
    @app.post("/flush_cache", openapi_extra=_FLUSH_PARAMETERS)
    async def flush_cache(request: Request) -> Response:
        """Drop all cached prefixes; 400 while requests are running."""
        status, message = await operations.flush_cache(service, request.query_params)
        return Response(message, status, media_type="text/plain")


def _add_errors(app: FastAPI) -> None:
    @app.exception_handler(ApiError)
    async def api_error(request: Request, error: ApiError) -> Response:
        headers = {name.decode(): value.decode() for name, value in error.headers()}
        return Response(error.body(), error.status, headers, "application/json")

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> Response:
        """No such path or method."""
        if error.status_code == 404:
            shaped = operations.not_found(request.url.path)
        else:
            shaped = ApiError(error.status_code, f"{request.method} {request.url.path[:200]}: {error.detail}")
        return Response(shaped.body(), shaped.status, error.headers, "application/json")


_FLUSH_PARAMETERS = {
    "parameters": [
        {"name": "timeout", "in": "query", "schema": {"type": "number"}, "description": "seconds to wait until idle"},
        {"name": "model", "in": "query", "schema": {"type": "string"}, "description": "only this model's replicas"},
    ]
}


def _openapi(app: FastAPI) -> dict[str, Any]:
    """FastAPI's description, and the request bodies, which it does not see since handlers read them themselves."""
    if app.openapi_schema:
        return app.openapi_schema
    schema = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
    kinds = [kind for types in REQUEST_TYPES.values() for kind in types]
    _, definitions = models_json_schema([(kind, "validation") for kind in kinds], ref_template="#/components/schemas/{model}")
    schema["components"]["schemas"].update(definitions["$defs"])
    for path, types in REQUEST_TYPES.items():
        refs = [{"$ref": f"#/components/schemas/{kind.__name__}"} for kind in types]
        body = refs[0] if len(refs) == 1 else {"anyOf": refs}
        schema["paths"][path]["post"]["requestBody"] = {"required": True, "content": {"application/json": {"schema": body}}}
    app.openapi_schema = schema
    return schema
