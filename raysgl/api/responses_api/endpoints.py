"""The handler of POST /v1/responses."""

from __future__ import annotations

from typing import Any

from raysgl.api.errors import bad_request, renaming
from raysgl.api.generate import Prepared, handler, prepare_chat
from raysgl.api.http import Handler
from raysgl.api.protocol import validate
from raysgl.api.responses_api.answer import ResponsesAnswer
from raysgl.api.responses_api.protocol import ResponsesRequest
from raysgl.api.responses_api.to_chat import RENAMED, to_chat
from raysgl.api.service import Service

STATEFUL = ("previous_response_id", "conversation", "prompt", "background")


def create_response(service: Service) -> Handler:
    """The handler of POST /v1/responses."""
    return handler(service, _prepare, ResponsesAnswer)


async def _prepare(service: Service, data: dict[str, Any]) -> Prepared:
    for name in STATEFUL:
        if data.get(name):
            raise bad_request(
                f"{name} is not supported: nothing is stored; send the whole input", name, "unsupported_parameter"
            )
    request = validate(ResponsesRequest, data)
    with renaming(RENAMED):
        chat, model, prompts, style = await prepare_chat(service, to_chat(request))
    style.source = request
    return chat, model, prompts, style
