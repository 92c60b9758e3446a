"""POST /v1/embeddings, and SGLang's /encode."""

from __future__ import annotations

import base64
import time
from collections.abc import Callable, Coroutine
from typing import Any

import numpy as np
import orjson
from starlette.datastructures import Headers
from starlette.types import Receive

from raysgl.api.errors import bad_request
from raysgl.api.http import Handler, Reply, read_body, until_disconnect
from raysgl.api.pooling.compute import Computation
from raysgl.api.pooling.protocol import EmbeddingsRequest, EncodeRequest
from raysgl.api.pooling.texts import read_texts
from raysgl.api.protocol import parse_json, validate
from raysgl.api.served_model import ServedModel
from raysgl.api.service import Service
from raysgl.models.pooling import PoolingSpec

Answer = Callable[[Service, dict[str, Any], Reply, float], Coroutine[Any, Any, bytes]]
"""(service, the body, the reply, when the request came) -> the answer's body. ApiError."""


def answering(answer: Answer) -> Callable[[Service], Handler]:
    """A row's `handler` of an endpoint that reads a body and answers with one, unless the client goes away."""

    def make(service: Service) -> Handler:
        async def handle(headers: Headers, receive: Receive, reply: Reply) -> None:
            arrived_at = time.perf_counter()
            with service.gate.enter():
                data = parse_json(await read_body(headers, receive))
                async with until_disconnect(receive):
                    body = await answer(service, data, reply, arrived_at)
                await reply.whole(body)

        return handle

    return make


@answering
async def embeddings(service: Service, data: dict[str, Any], reply: Reply, arrived_at: float) -> bytes:
    request = validate(EmbeddingsRequest, data)
    model = service.pooler(request.model, "embed")
    size = dimensions(request.dimensions, model)
    special = request.add_special_tokens is not False
    texts = await read_texts(request.input, "input", model, request.truncate_prompt_tokens, special=special)
    reply.name(request.rid)
    async with Computation(
        service, model, texts, request.rid or reply.request_id, request.priority or 0, arrived_at
    ) as computation:
        vectors = cut(await computation.results(), size, model)
    rows: list[Any] = list(vectors)
    if request.encoding_format == "base64":
        rows = [base64.b64encode(vector.astype("<f4").tobytes()).decode() for vector in vectors]
    return dump(
        {
            "object": "list",
            "data": [{"object": "embedding", "index": i, "embedding": row} for i, row in enumerate(rows)],
            "model": request.model or model.name,
            "usage": usage(computation.prompt_tokens),
        }
    )


@answering
async def encode(service: Service, data: dict[str, Any], reply: Reply, arrived_at: float) -> bytes:
    request = validate(EncodeRequest, data)
    return await native(service, request, service.pooler(request.model, "embed"), reply, arrived_at)


async def native(service: Service, request: EncodeRequest, model: ServedModel, reply: Reply, arrived_at: float) -> bytes:
    """SGLang's answer: the numbers of each text, with its meta_info; a list of them for a batch."""
    size = dimensions(request.dimensions, model)
    given = [name for name in ("text", "input_ids") if getattr(request, name) is not None]
    if len(given) != 1:
        raise bad_request("exactly one of text and input_ids is needed", given[-1] if given else "text")
    name = given[0]
    value = getattr(request, name)
    several = isinstance(value, list) and bool(value) and not isinstance(value[0], int)
    texts = await read_texts(value, name, model, request.truncate_prompt_tokens, texts=name == "text", ids=name == "input_ids")
    reply.name(request.rid)
    request_id = request.rid or reply.request_id
    async with Computation(service, model, texts, request_id, request.priority or 0, arrived_at) as computation:
        vectors = cut(await computation.results(), size, model)
    answers = [
        {
            "embedding": vector,
            "meta_info": {
                "id": f"{request_id}_{i}" if several else request_id,
                "finish_reason": {"type": "stop", "matched": None},
                "prompt_tokens": len(text.token_ids),
                "weight_version": computation.weight_version(i),
                "e2e_latency": computation.seconds,
            },
        }
        for i, (vector, text) in enumerate(zip(vectors, texts))
    ]
    return dump(answers if several else answers[0])


def dimensions(asked: int | None, model: ServedModel) -> int:
    """Numbers of a vector. ApiError 400 for a size that the model was not trained for."""
    spec: PoolingSpec = model.pooling
    if asked is None or asked == spec.size:
        return spec.size
    if spec.task != "embed" or spec.dimensions == ():
        raise bad_request(
            f"dimensions is {asked}, but the vectors of {model.name!r} have {spec.size} numbers and must not be cut",
            "dimensions",
        )
    if asked > spec.size or spec.dimensions is not None and asked not in spec.dimensions:
        allowed = f"at most {spec.size}" if spec.dimensions is None else " or ".join(map(str, spec.dimensions))
        raise bad_request(f"dimensions is {asked}, but must be {allowed} for {model.name!r}", "dimensions")
    return asked


def cut(vectors_SD: np.ndarray, size: int, model: ServedModel) -> np.ndarray:
    """The vectors' first numbers; of length 1 again, where the whole ones have that."""
    if size == vectors_SD.shape[1]:
        return vectors_SD
    shorter = np.ascontiguousarray(vectors_SD[:, :size])
    return unit(shorter) if model.pooling.normalize else shorter


def unit(vectors_SD: np.ndarray) -> np.ndarray:
    """Of length 1."""
    return vectors_SD / np.maximum(np.linalg.norm(vectors_SD, axis=1, keepdims=True), 1e-12)


def usage(prompt_tokens: int) -> dict[str, Any]:
    return {
        "prompt_tokens": prompt_tokens,
        "total_tokens": prompt_tokens,
        "completion_tokens": 0,
        "prompt_tokens_details": None,
    }


def dump(value: Any) -> bytes:
    """JSON; arrays of numpy become lists."""
    return orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY)
