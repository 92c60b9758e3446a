"""How well two texts fit, by any kind of model.

A cross-encoder reads both as one and gives a score. An embedding model gives two vectors; the score is their cosine. A model that
generates is asked for a yes or no, if its chat template reads `query` and `document` (examples/qwen3_reranker.jinja); the score is the
probability of yes, of these two (Zhang et al. 2025, "Qwen3 Embedding", section 2).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from raysgl.api.chat_template import TemplateError
from raysgl.api.errors import bad_request
from raysgl.api.pooling.activation import activate, softmax
from raysgl.api.pooling.compute import Computation
from raysgl.api.pooling.embeddings import unit
from raysgl.api.pooling.labels import label_logprobs, single_token
from raysgl.api.pooling.texts import FIELD, TextIds, read_pairs, read_texts
from raysgl.api.prompts import encode, in_turns
from raysgl.api.served_model import ServedModel
from raysgl.api.service import Service

PROMPT_VARIABLES = frozenset({"query", "document"})
YES, NO = "yes", "no"


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """What to score. fields: what the request calls the first and the second texts. cut: its truncate_prompt_tokens.
    activation: its use_activation. instruct: see `RerankRequest`."""

    texts: Sequence[tuple[str, str]]
    fields: tuple[str, str]
    request_id: str
    priority: int
    arrived_at: float
    cut: int | None = None
    activation: bool | None = None
    instruct: str | None = None


async def scores(service: Service, model: ServedModel, pairs: Pairs) -> tuple[np.ndarray, int]:
    """A score for each pair, and the tokens that were computed for them. ApiError."""
    if model.pooling is None:
        return await _judged(service, model, pairs)
    if pairs.instruct is not None:
        raise bad_request(f"{model.name!r} takes no instruct", "instruct", "unsupported_parameter")
    if model.pooling.task == "embed":
        return await _cosines(service, model, pairs)
    model = service.pooler(model.name, "score")
    texts = await read_pairs(pairs.texts, pairs.fields, model, pairs.cut)
    numbers, tokens = await _compute(service, model, texts, pairs)
    return activate(numbers, model.pooling, pairs.activation)[:, 0], tokens


async def _cosines(service: Service, model: ServedModel, pairs: Pairs) -> tuple[np.ndarray, int]:
    """Every text is computed once."""
    if pairs.activation is not None:
        raise bad_request(
            f"{model.name!r} makes vectors, so use_activation has no effect", "use_activation", "unsupported_parameter"
        )
    rows: dict[str, int] = {}
    texts: list[TextIds] = []
    for side, field in enumerate(pairs.fields):
        new = [text for text in dict.fromkeys(pair[side] for pair in pairs.texts) if text not in rows]
        if new:
            rows.update((text, len(texts) + i) for i, text in enumerate(new))
            texts += await read_texts(new, field, model, pairs.cut, ids=False)
    numbers, tokens = await _compute(service, model, texts, pairs)
    vectors = unit(numbers)
    first, second = (vectors[[rows[pair[side]] for pair in pairs.texts]] for side in (0, 1))
    return (first * second).sum(axis=1), tokens


async def _compute(service: Service, model: ServedModel, texts: list[TextIds], pairs: Pairs) -> tuple[np.ndarray, int]:
    async with Computation(service, model, texts, pairs.request_id, pairs.priority, pairs.arrived_at) as computation:
        return await computation.results(), computation.prompt_tokens


async def _judged(service: Service, model: ServedModel, pairs: Pairs) -> tuple[np.ndarray, int]:
    for value, name in ((pairs.cut, FIELD), (pairs.activation, "use_activation")):
        if value is not None:
            raise bad_request(f"{model.name!r} generates text, and takes no {name}", name, "unsupported_parameter")
    template = model.chat_template
    labels = [single_token(text, model) for text in (NO, YES)]
    if template is None or not template.variables >= PROMPT_VARIABLES or None in labels:
        raise bad_request(
            f"{model.name!r} generates text, and its chat template does not read query and document; set chat_template to one that does",
            "model",
            "wrong_kind_of_model",
        )
    if pairs.instruct is not None and "instruct" not in template.variables:
        raise bad_request(f"The chat template of {model.name!r} has no instruct", "instruct", "unsupported_parameter")
    told = {} if pairs.instruct is None else {"instruct": pairs.instruct}
    prompts = []
    async for query, document in in_turns(pairs.texts):
        try:
            text = template.render([], query=query, document=document, **told)
        except TemplateError as error:
            raise bad_request(str(error), pairs.fields[1]) from None
        prompts.append(await encode(text, model, pairs.fields[1], add_special_tokens=False))
    found = await label_logprobs(
        service, model, prompts, tuple(labels), pairs.fields[1], pairs.request_id, pairs.priority, pairs.arrived_at
    )
    return softmax(found)[:, 1], sum(map(len, prompts))
