"""How probable some tokens are behind a prompt, by a model that generates: a generation of one token that is not looked at."""

from __future__ import annotations

import numpy as np

from raysgl.api.errors import bad_request
from raysgl.api.generation import Generation, Job, Prompt
from raysgl.api.sampling_request import resolve_length
from raysgl.api.served_model import ServedModel
from raysgl.api.service import Service
from raysgl.sampling.params import SamplingParams


async def label_logprobs(
    service: Service,
    model: ServedModel,
    prompts: list[list[int]],
    labels: tuple[int, ...],
    field: str,
    request_id: str,
    priority: int,
    arrived_at: float,
) -> np.ndarray:
    """[prompts, labels]. field: what the request calls the prompts. ApiError."""
    params = SamplingParams(max_new_tokens=1, temperature=0.0, seed=0, ignore_eos=True, logprobs=True, token_ids_logprob=labels)
    for ids in prompts:
        resolve_length(params, len(ids), model, 1, lambda name: field, field)
    job = Job(model, request_id, [Prompt(ids, params) for ids in prompts], priority=priority, arrived_at=arrived_at)
    found = np.full((len(prompts), len(labels)), np.nan)
    async with Generation(service.backend, job, service.metrics.of(model.name)) as generation:
        while generation.open:
            for piece in await generation.next():
                if piece.logprobs:
                    found[piece.index] = piece.logprobs[0].asked
                elif piece.finish_reason == "abort":
                    raise bad_request(piece.message or "the request was aborted", code="aborted")
    return found


def single_token(text: str, model: ServedModel) -> int | None:
    """The token that a text is, if it is one."""
    ids = model.tokenizer.encode(text, add_special_tokens=False)
    return ids[0] if len(ids) == 1 else None
