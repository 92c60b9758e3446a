"""The handlers of POST /v1/messages and /v1/messages/count_tokens."""

from __future__ import annotations

from typing import Any

import orjson
from starlette.datastructures import Headers
from starlette.types import Receive

from raysgl.api.anthropic.answer import MessagesAnswer
from raysgl.api.anthropic.protocol import CountTokensRequest, MessagesRequest
from raysgl.api.anthropic.to_chat import RENAMED, to_chat
from raysgl.api.errors import renaming
from raysgl.api.generate import Prepared, handler, prepare_chat
from raysgl.api.http import Handler, Reply, read_body
from raysgl.api.protocol import parse_json, validate
from raysgl.api.service import Service


def messages(service: Service) -> Handler:
    """The handler of POST /v1/messages."""
    return handler(service, _prepare, MessagesAnswer)


def count_tokens(service: Service) -> Handler:
    """The handler of POST /v1/messages/count_tokens."""

    async def handle(headers: Headers, receive: Receive, reply: Reply) -> None:
        data = parse_json(await read_body(headers, receive))
        request = validate(CountTokensRequest, data)
        with renaming(RENAMED):
            _, _, prompts, _ = await prepare_chat(service, to_chat(request, service.generator(request.model)))
        await reply.whole(orjson.dumps({"input_tokens": len(prompts[0].input_ids)}))

    return handle


async def _prepare(service: Service, data: dict[str, Any]) -> Prepared:
    request = validate(MessagesRequest, data)
    with renaming(RENAMED):
        return await prepare_chat(service, to_chat(request, service.generator(request.model)))
