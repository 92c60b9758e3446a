"""The endpoints around generation: models, health, metrics, tokens, cache, abort."""

from __future__ import annotations

from typing import Any

import orjson
from fastapi.openapi.docs import get_swagger_ui_html
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive

import raysgl
from raysgl.api.errors import ApiError, bad_request, model_not_found
from raysgl.api.http import Handler, Reply, read_body
from raysgl.api.prompts import as_list, check_ids, encode, in_turns, render_chat
from raysgl.api.protocol import (
    AbortRequest,
    DetokenizeRequest,
    TokenizeChatRequest,
    TokenizeRequest,
    parse_json,
    validate,
)
from raysgl.api.served_model import ServedModel
from raysgl.api.service import Service
from raysgl.api.unsupported import refuse_parts


def model_card(model: ServedModel) -> dict[str, Any]:
    """An entry of GET /v1/models."""
    return {
        "id": model.name,
        "object": "model",
        "created": model.created,
        "owned_by": "raysgl",
        "root": model.name,
        "parent": None,
        "max_model_len": model.token_limit()[0],
    }


async def list_models(service: Service, request: Request) -> Response:
    """What is served."""
    return _json({"object": "list", "data": [model_card(model) for model in service.models().values()]})


async def get_model(service: Service, request: Request) -> Response:
    """One served model. ApiError 404."""
    return _json(model_card(service.model(request.path_params["model_id"])))


async def banner(service: Service, request: Request) -> Response:
    """What this is and where to look."""
    shown = {} if service.keys.used else {"models": list(service.backend.models)}
    return _json({"name": "raysgl", "version": raysgl.__version__, **shown, "docs": "/docs"})


async def docs(service: Service, request: Request) -> Response:
    """The description as a page."""
    return get_swagger_ui_html(openapi_url="openapi.json", title="raysgl")


async def description(service: Service, request: Request) -> Response:
    """The OpenAPI description."""
    return _json(request.app.openapi())


async def health(service: Service, request: Request) -> Response:
    """The process is alive."""
    return Response()


async def ready(service: Service, request: Request) -> Response:
    """Every model has a replica, and the server is not stopping."""
    return Response(status_code=200 if service.backend.ready() and not service.gate.draining else 503)


async def metrics(service: Service, request: Request) -> Response:
    """Prometheus text format, with SGLang's names."""
    return Response(service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


def _json(value: Any) -> Response:
    return Response(orjson.dumps(value), media_type="application/json")


def tokenize(service: Service) -> Handler:
    """The handler of POST /tokenize: a prompt, several, or messages."""

    async def handle(headers: Headers, receive: Receive, reply: Reply) -> None:
        data = parse_json(await read_body(headers, receive))
        several = False
        if "messages" in data:
            refuse_parts(data["messages"])
            chat = validate(TokenizeChatRequest, data)
            model = service.model(chat.model)
            text = await render_chat(service, chat, data, model)
            results = [await encode(text, model, "messages", bool(chat.add_special_tokens), check_length=False)]
        else:
            request = validate(TokenizeRequest, data)
            model = service.model(request.model)
            several = isinstance(request.prompt, list)
            texts = as_list(request.prompt, "prompt", texts=True, ids=False)
            special = request.add_special_tokens is not False
            results = [await encode(text, model, "prompt", special, check_length=False) async for text in in_turns(texts)]
        counts = [len(ids) for ids in results]
        tokens, count = (results, counts) if several else (results[0], counts[0])
        await reply.whole(orjson.dumps({"tokens": tokens, "count": count, "max_model_len": model.token_limit()[0]}))

    return handle


def detokenize(service: Service) -> Handler:
    """The handler of POST /detokenize."""

    async def handle(headers: Headers, receive: Receive, reply: Reply) -> None:
        data = parse_json(await read_body(headers, receive))
        request = validate(DetokenizeRequest, data)
        model = service.model(request.model)
        lists = [[]] if request.tokens == [] else as_list(request.tokens, "tokens", texts=False, ids=True)
        for ids in filter(None, lists):
            check_ids(ids, model, "tokens")
        texts = [model.tokenizer.decode(ids, request.skip_special_tokens is not False) for ids in lists]
        several = bool(request.tokens) and isinstance(request.tokens[0], list)
        await reply.whole(orjson.dumps({"text": texts if several else texts[0]}))

    return handle


def abort_request(service: Service) -> Handler:
    """The handler of POST /abort_request. An id that is not there is no error: it may just have finished."""

    async def handle(headers: Headers, receive: Receive, reply: Reply) -> None:
        data = parse_json(await read_body(headers, receive))
        request = validate(AbortRequest, data)
        if not request.rid and not request.abort_all:
            raise bad_request("rid or abort_all is required", "rid", "missing_required_parameter")
        aborted = service.backend.abort_request(None if request.abort_all else request.rid)
        await reply.whole(orjson.dumps({"aborted": aborted}))

    return handle


async def flush_cache(service: Service, request: Request) -> Response:
    """Drop all cached prefixes; 400 while requests are running."""
    query = request.query_params
    for name in query:
        if name not in ("timeout", "model"):
            raise bad_request(f"Unknown query parameter: {name[:40]}", name[:40], "unknown_parameter")
    try:
        timeout = float(query.get("timeout", "0"))
    except ValueError:
        timeout = -1.0
    if not 0 <= timeout <= 3600:
        raise bad_request("timeout must be a number of seconds from 0 to 3600", "timeout")
    model = query.get("model")
    if model is not None and model not in service.backend.models:
        raise model_not_found(model)
    done, message = await service.backend.flush_cache(model, timeout)
    return Response(message or "Cache flushed.", 200 if done else 400, media_type="text/plain")


def not_found(path: str) -> ApiError:
    return ApiError(404, f"There is no {path[:200]}", code="not_found")
