"""GET /health_generate: does every model still generate, or make vectors?"""

from __future__ import annotations

import asyncio
import uuid

from starlette.requests import Request
from starlette.responses import Response

from raysgl.api.backend import QueueFull, Unavailable
from raysgl.api.served_model import ServedModel
from raysgl.api.service import Service
from raysgl.sampling.params import SamplingParams

TIMEOUT_S = 20.0
LOOK_EVERY_S = 1.0
ONE_TOKEN = SamplingParams(max_new_tokens=1, temperature=0.0, seed=0, ignore_eos=True)


async def health_generate(service: Service, request: Request) -> Response:
    """Every model generates a token, or its replicas are at work."""
    return Response(status_code=200 if await generates(service) else 503)


async def generates(service: Service) -> bool:
    """Whether each model gives a token within `TIMEOUT_S`, or, where others are before it, its replicas make steps meanwhile.

    A model whose memory somebody has released is as it should be: whoever restarts what is not healthy must leave it alone."""
    if service.gate.draining or not service.backend.ready():
        return False
    return all(await asyncio.gather(*(_generates(service, model) for model in service.backend.models.values())))


async def _generates(service: Service, model: ServedModel) -> bool:
    loads = service.backend.loads().get(model.name, {}).values()
    if loads and all(load.released for load in loads):
        return True
    before = _steps(service, model)
    probe = asyncio.create_task(_one_token(service, model))
    try:
        for _ in range(round(TIMEOUT_S / LOOK_EVERY_S)):
            done, _ = await asyncio.wait([probe], timeout=LOOK_EVERY_S)
            if done:
                return probe.result()
            if _steps(service, model) != before:
                return True
        return False
    finally:
        probe.cancel()


async def _one_token(service: Service, model: ServedModel) -> bool:
    try:
        stream = await service.backend.submit(model, f"HEALTH_CHECK_{uuid.uuid4().hex}", [0], ONE_TOKEN)
    except (QueueFull, Unavailable) as error:
        return isinstance(error, QueueFull)
    try:
        news = await stream.get()
        return any(output.token_ids or output.numbers for _, output in news)
    finally:
        stream.abort()


def _steps(service: Service, model: ServedModel) -> int:
    return sum(load.steps for load in service.backend.loads().get(model.name, {}).values())
