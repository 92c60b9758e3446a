"""Every endpoint, one row each: path, methods, what runs, who may call it, how large a body may be, and what /docs says of it.

`raysgl.api.app` makes the routes, the checks of keys and the OpenAPI description from this table; adding an endpoint is adding a
row. A row with `handler` answers on the bare connection (streams, and whatever reads a body); one with `view` returns a response.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response

from raysgl.api import admin, debug, generate, info, native, operations, parse, probe, protocol, responses
from raysgl.api.anthropic import endpoints as anthropic
from raysgl.api.anthropic.answer import error_body as anthropic_error
from raysgl.api.anthropic.protocol import CountTokensRequest, MessagesRequest
from raysgl.api.errors import ApiError
from raysgl.api.http import Handler
from raysgl.api.keys import Access
from raysgl.api.native_protocol import GenerateRequest
from raysgl.api.pooling import answers, classify, embeddings, ranking
from raysgl.api.pooling.protocol import (
    ClassifyRequest,
    EmbeddingsRequest,
    EncodeRequest,
    LabelScoreRequest,
    RerankRequest,
    ScoreRequest,
)
from raysgl.api.responses_api import endpoints as responses_api
from raysgl.api.responses_api.protocol import ResponsesRequest
from raysgl.api.service import Service

SMALL = 64 * 1024
"""The largest body, in bytes, of requests that carry no text."""
TEXTS = 4 * 2**20
"""Of requests whose text no model's context bounds: so much is tokenised in about two seconds, beside the event loop."""


JSON, EVENTS, TEXT = "application/json", "text/event-stream", "text/plain"
OR_STREAM = (JSON, EVENTS)


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """One row. `body_limit` is in bytes; None: the server's max_body_bytes. /docs shows the first method only, the others are
    its synonyms. `media`: what a 200 may be; nothing: it is empty. `error_body` is the shape that errors have, `parameters` are OpenAPI's, for paths and queries."""

    path: str
    methods: tuple[str, ...] = ("POST",)
    access: Access = Access.KEY
    handler: Callable[[Service], Handler] | None = None
    view: Callable[[Service, Request], Awaitable[Response]] | None = None
    body_limit: int | None = None
    requests: tuple[type[BaseModel], ...] = ()
    response: Any = None
    media: tuple[str, ...] = (JSON,)
    error_body: Callable[[ApiError], bytes] = ApiError.body
    parameters: tuple[dict[str, Any], ...] = ()
    hidden: bool = False


def _parameter(name: str, where: str, kind: str, description: str) -> dict[str, Any]:
    return {"name": name, "in": where, "required": where == "path", "schema": {"type": kind}, "description": description}


GENERATED = responses.Generated | list[responses.Generated]
TOKENIZE = (protocol.TokenizeRequest, protocol.TokenizeChatRequest)
DETOKENIZE = (protocol.DetokenizeRequest,)
FLUSH_PARAMETERS = (
    _parameter("timeout", "query", "number", "seconds to wait until idle"),
    _parameter("model", "query", "string", "only what is of this model"),
)

MODEL_PARAMETERS = (_parameter("model", "query", "string", "where several are served"),)
LOADS_PARAMETERS = (
    _parameter("include", "query", "string", f"some of {', '.join(info.INCLUDE)}, separated by commas; default: all"),
    _parameter("format", "query", "string", "json or prometheus"),
    _parameter("model", "query", "string", "only this model's replicas"),
)

# fmt: off
ENDPOINTS: tuple[Endpoint, ...] = (
    Endpoint(path="/v1/chat/completions", handler=generate.chat_completions,
             requests=(protocol.ChatCompletionRequest,), response=responses.ChatCompletion, media=OR_STREAM),
    Endpoint(path="/v1/completions", handler=generate.completions,
             requests=(protocol.CompletionRequest,), response=responses.Completion, media=OR_STREAM),
    Endpoint(path="/v1/responses", handler=responses_api.create_response,
             requests=(ResponsesRequest,), response=responses.Response, media=OR_STREAM),
    Endpoint(path="/v1/messages", handler=anthropic.messages, error_body=anthropic_error,
             requests=(MessagesRequest,), response=responses.Message, media=OR_STREAM),
    Endpoint(path="/v1/messages/count_tokens", handler=anthropic.count_tokens, error_body=anthropic_error,
             requests=(CountTokensRequest,), response=responses.InputTokens),
    Endpoint(path="/generate", methods=("POST", "PUT"), handler=native.generate,
             requests=(GenerateRequest,), response=GENERATED, media=OR_STREAM),

    Endpoint(path="/v1/embeddings", handler=embeddings.embeddings,
             requests=(EmbeddingsRequest,), response=answers.Embeddings),
    Endpoint(path="/encode", methods=("POST", "PUT"), handler=embeddings.encode,
             requests=(EncodeRequest,), response=answers.Encoded | list[answers.Encoded]),
    Endpoint(path="/v1/rerank", methods=("POST", "PUT"), handler=ranking.rerank,
             requests=(RerankRequest,), response=answers.Ranked),
    Endpoint(path="/rerank", handler=ranking.rerank, hidden=True),
    Endpoint(path="/v2/rerank", handler=ranking.rerank, hidden=True),
    Endpoint(path="/v1/score", handler=ranking.score,
             requests=(ScoreRequest, LabelScoreRequest), response=answers.Scores | answers.LabelScores),
    Endpoint(path="/score", handler=ranking.score, hidden=True),
    Endpoint(path="/v1/classify", handler=classify.classify,
             requests=(ClassifyRequest, EncodeRequest), response=answers.CLASSIFIED),
    Endpoint(path="/classify", methods=("POST", "PUT"), handler=classify.classify, hidden=True),

    Endpoint(path="/tokenize", handler=operations.tokenize, body_limit=TEXTS,
             requests=TOKENIZE, response=responses.TokenizeResponse),
    Endpoint(path="/v1/tokenize", handler=operations.tokenize, body_limit=TEXTS, hidden=True),
    Endpoint(path="/detokenize", handler=operations.detokenize, body_limit=TEXTS,
             requests=DETOKENIZE, response=responses.DetokenizeResponse),
    Endpoint(path="/v1/detokenize", handler=operations.detokenize, body_limit=TEXTS, hidden=True),

    Endpoint(path="/parse_function_call", handler=parse.parse_function_call, body_limit=TEXTS,
             requests=(protocol.ParseFunctionCallRequest,), response=responses.ParseFunctionCallResponse),
    Endpoint(path="/separate_reasoning", handler=parse.separate_reasoning, body_limit=TEXTS,
             requests=(protocol.SeparateReasoningRequest,), response=responses.SeparateReasoningResponse),

    Endpoint(path="/v1/models", methods=("GET",), view=operations.list_models, response=responses.ModelList),
    Endpoint(path="/v1/models/{model_id:path}", methods=("GET",), view=operations.get_model, response=responses.ModelCard,
             parameters=(_parameter("model_id", "path", "string", "a served model"),)),

    Endpoint(path="/abort_request", access=Access.ADMIN_OPTIONAL, handler=operations.abort_request, body_limit=SMALL,
             requests=(protocol.AbortRequest,), response=responses.AbortResponse),
    Endpoint(path="/flush_cache", methods=("POST", "GET"), access=Access.ADMIN_OPTIONAL, view=operations.flush_cache,
             parameters=FLUSH_PARAMETERS, media=(TEXT,)),
    Endpoint(path="/reset_prefix_cache", access=Access.ADMIN_OPTIONAL, view=operations.flush_cache, hidden=True),

    Endpoint(path="/start_profile", access=Access.ADMIN, handler=admin.start_profile, body_limit=SMALL,
             requests=(protocol.StartProfileRequest,), response=responses.Commanded),
    Endpoint(path="/stop_profile", access=Access.ADMIN, handler=admin.stop_profile, body_limit=SMALL,
             requests=(protocol.StopProfileRequest,), response=responses.Commanded),
    Endpoint(path="/release_memory_occupation", access=Access.ADMIN, handler=admin.release_memory, body_limit=SMALL,
             requests=(protocol.MemoryRequest,), response=responses.Commanded),
    Endpoint(path="/resume_memory_occupation", access=Access.ADMIN, handler=admin.resume_memory, body_limit=SMALL,
             requests=(protocol.MemoryRequest,), response=responses.Commanded),
    Endpoint(path="/update_weights_from_disk", access=Access.ADMIN, handler=admin.update_weights, body_limit=SMALL,
             requests=(protocol.UpdateWeightsRequest,), response=responses.WeightsUpdated),
    Endpoint(path="/configure_logging", access=Access.ADMIN, handler=admin.configure_logging, body_limit=SMALL,
             requests=(protocol.ConfigureLoggingRequest,), response=responses.Logging),

    Endpoint(path="/debug/index", methods=("GET",), access=Access.ADMIN, view=debug.index, response=responses.IndexCheck,
             parameters=(_parameter("model", "query", "string", "only this model's replicas"),)),

    Endpoint(path="/model_info", methods=("GET",), view=info.model_info, response=responses.ModelInfo,
             parameters=MODEL_PARAMETERS),
    Endpoint(path="/get_model_info", methods=("GET",), view=info.model_info, hidden=True),
    Endpoint(path="/server_info", methods=("GET",), view=info.server_info, parameters=MODEL_PARAMETERS),
    Endpoint(path="/get_server_info", methods=("GET",), view=info.server_info, hidden=True),
    Endpoint(path="/v1/loads", methods=("GET",), view=info.loads, parameters=LOADS_PARAMETERS, media=(JSON, TEXT)),
    Endpoint(path="/invocations", handler=generate.chat_completions,
             requests=(protocol.ChatCompletionRequest,), response=responses.ChatCompletion, media=OR_STREAM),
    Endpoint(path="/ping", methods=("GET",), access=Access.OPEN, view=operations.health, media=()),
    Endpoint(path="/health_generate", methods=("GET",), access=Access.OPEN, view=probe.health_generate, media=()),

    Endpoint(path="/docs", methods=("GET",), access=Access.OPEN, view=operations.docs, hidden=True),
    Endpoint(path="/openapi.json", methods=("GET",), access=Access.OPEN, view=operations.description, hidden=True),
    Endpoint(path="/", methods=("GET",), access=Access.OPEN, view=operations.banner),
    Endpoint(path="/health", methods=("GET",), access=Access.OPEN, view=operations.health, media=()),
    Endpoint(path="/ready", methods=("GET",), access=Access.OPEN, view=operations.ready, media=()),
    Endpoint(path="/metrics", methods=("GET",), access=Access.OPEN, view=operations.metrics, media=(TEXT,)),
)
# fmt: on
