"""POST /v1/classify and /classify: vLLM's form, and SGLang's, which answers with the classifier's bare numbers."""

from __future__ import annotations

import time
from typing import Any

from raysgl.api.http import Reply
from raysgl.api.pooling.activation import activate
from raysgl.api.pooling.compute import Computation
from raysgl.api.pooling.embeddings import answering, dump, native, usage
from raysgl.api.pooling.protocol import ClassifyRequest, EncodeRequest
from raysgl.api.pooling.texts import read_texts
from raysgl.api.protocol import validate
from raysgl.api.service import Service


@answering
async def classify(service: Service, data: dict[str, Any], reply: Reply, arrived_at: float) -> bytes:
    if "text" in data or "input_ids" in data:
        encoded = validate(EncodeRequest, data)
        return await native(service, encoded, service.pooler(encoded.model, "classify", "score"), reply, arrived_at)
    request = validate(ClassifyRequest, data)
    model = service.pooler(request.model, "classify", "score")
    texts = await read_texts(request.input, "input", model, request.truncate_prompt_tokens)
    reply.name(request.rid)
    request_id = request.rid or reply.request_id
    async with Computation(service, model, texts, request_id, request.priority or 0, arrived_at) as computation:
        probabilities = activate(await computation.results(), model.pooling, request.use_activation)
    labels = model.pooling.labels
    return dump(
        {
            "id": f"classify-{reply.request_id}",
            "object": "list",
            "created": int(time.time()),
            "model": request.model or model.name,
            "data": [
                {"index": i, "label": labels[row.argmax()], "probs": row, "num_classes": len(row)}
                for i, row in enumerate(probabilities)
            ],
            "usage": usage(computation.prompt_tokens),
        }
    )
