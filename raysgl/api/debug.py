"""Whether the server is right about itself."""

from __future__ import annotations

import orjson
from starlette.requests import Request
from starlette.responses import Response

from raysgl.api.errors import bad_request
from raysgl.api.service import Service


async def index(service: Service, request: Request) -> Response:
    """Whether the coordinator and every ingress know exactly what each replica has cached, and whether every page is accounted for."""
    for name in request.query_params:
        if name != "model":
            raise bad_request(f"Unknown query parameter: {name[:40]}", name[:40], "unknown_parameter")
    model = request.query_params.get("model")
    if model is not None:
        service.model(model)
    return Response(orjson.dumps(await service.backend.check_index(model)), media_type="application/json")
