"""POST /v1/rerank, and /v1/score in vLLM's form and in SGLang's."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from raysgl.api.errors import bad_request
from raysgl.api.http import Reply
from raysgl.api.pooling.activation import softmax
from raysgl.api.pooling.embeddings import answering, dump, usage
from raysgl.api.pooling.labels import label_logprobs
from raysgl.api.pooling.pair_scores import Pairs, scores
from raysgl.api.pooling.protocol import LabelScoreRequest, RerankRequest, ScoreRequest, TextDocument
from raysgl.api.prompts import as_list, check_ids, encode, in_turns
from raysgl.api.protocol import validate, validate_at
from raysgl.api.service import Service


@answering
async def rerank(service: Service, data: dict[str, Any], reply: Reply, arrived_at: float) -> bytes:
    request = validate(RerankRequest, data)
    model = service.model(request.model)
    documents = [
        document if isinstance(document, str) else validate_at(TextDocument, document, f"documents.{i}").text
        for i, document in enumerate(request.documents)
    ]
    reply.name(request.rid)
    pairs = Pairs(
        texts=[(request.query, document) for document in documents],
        fields=("query", "documents"),
        request_id=request.rid or reply.request_id,
        priority=request.priority or 0,
        arrived_at=arrived_at,
        cut=request.truncate_prompt_tokens,
        activation=request.use_activation,
        instruct=request.instruct,
    )
    found, tokens = await scores(service, model, pairs)
    order = np.argsort(-found, kind="stable")[: request.top_n or None]
    results: list[dict[str, Any]] = [{"index": int(i), "relevance_score": found[i]} for i in order]
    if request.return_documents is not False:
        for result in results:
            result["document"] = {"text": documents[result["index"]]}
    return dump(
        {
            "id": f"rerank-{reply.request_id}",
            "object": "list",
            "model": request.model or model.name,
            "results": results,
            "usage": usage(tokens),
        }
    )


@answering
async def score(service: Service, data: dict[str, Any], reply: Reply, arrived_at: float) -> bytes:
    if "items" in data or "label_token_ids" in data:
        return await _label_scores(service, validate(LabelScoreRequest, data), reply, arrived_at)
    request = validate(ScoreRequest, data)
    model = service.model(request.model)
    reply.name(request.rid)
    pairs = Pairs(
        texts=_pairs(request),
        fields=("text_1", "text_2"),
        request_id=request.rid or reply.request_id,
        priority=request.priority or 0,
        arrived_at=arrived_at,
        cut=request.truncate_prompt_tokens,
        activation=request.use_activation,
    )
    found, tokens = await scores(service, model, pairs)
    return dump(
        {
            "id": f"score-{reply.request_id}",
            "object": "list",
            "created": int(time.time()),
            "model": request.model or model.name,
            "data": [{"index": i, "object": "score", "score": value} for i, value in enumerate(found)],
            "usage": usage(tokens),
        }
    )


def _pairs(request: ScoreRequest) -> list[tuple[str, str]]:
    """One text with each of the others, or one by one. ApiError 400."""
    first = as_list(request.text_1, "text_1", texts=True, ids=False)
    second = as_list(request.text_2, "text_2", texts=True, ids=False)
    if len(first) == 1:
        first = first * len(second)
    elif len(second) == 1:
        second = second * len(first)
    if len(first) != len(second):
        raise bad_request(f"text_1 has {len(first)} texts and text_2 {len(second)}; they must be as many, or one", "text_2")
    return list(zip(first, second))


async def _label_scores(service: Service, request: LabelScoreRequest, reply: Reply, arrived_at: float) -> bytes:
    model = service.generator(request.model)
    check_ids(request.label_token_ids, model, "label_token_ids")
    texts = isinstance(request.query, str)
    query = request.query if texts else as_list(request.query, "query", texts=False, ids=True, several=False)[0]
    if not texts:
        check_ids(query, model, "query")
    items = as_list(request.items, "items", texts=texts, ids=not texts)
    prompts = []
    async for item in in_turns(items):
        prompt = item + query if request.item_first else query + item
        if texts:
            prompts.append(await encode(prompt, model, "items", add_special_tokens=True))
        else:
            check_ids(prompt, model, "items")
            prompts.append(prompt)
    reply.name(request.rid)
    found = await label_logprobs(
        service,
        model,
        prompts,
        tuple(request.label_token_ids),
        "items",
        request.rid or reply.request_id,
        request.priority or 0,
        arrived_at,
    )
    values = softmax(found) if request.apply_softmax else np.exp(found)
    return dump(
        {
            "scores": values,
            "model": request.model or model.name,
            "usage": usage(sum(map(len, prompts))),
            "object": "scoring",
        }
    )
