"""POST /v1/chat/completions and /v1/completions: request to job, job to answer."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

import msgspec
from starlette.datastructures import Headers
from starlette.types import Receive

from raysgl.api.answers import Answer, Style
from raysgl.api.chat_answer import ChatAnswer
from raysgl.api.completion_answer import CompletionAnswer
from raysgl.api.constraint_request import constraint_field
from raysgl.api.errors import bad_request
from raysgl.api.extras import Extras, WithTokenIds
from raysgl.api.generation import Generation, Job, Prompt
from raysgl.api.http import Handler, Reply, read_body, until_disconnect
from raysgl.api.output_form import Asked, output_form
from raysgl.api.prompts import as_list, check_ids, encode, in_turns, render_chat
from raysgl.api.protocol import ChatCompletionRequest, CompletionRequest, GenerationRequest, parse_json, validate
from raysgl.api.sampling_request import fit, sampling_params
from raysgl.api.sequence_text import Piece
from raysgl.api.served_model import ServedModel
from raysgl.api.service import Service
from raysgl.api.stream_interval import Gatherer
from raysgl.api.tool_use import tool_use
from raysgl.api.unsupported import refuse_parts
from raysgl.sampling.params import SamplingParams


class AnswerShape(Protocol):
    """How one request's answer looks."""

    def chunks(self, pieces: list[Piece]) -> bytes:
        """The pieces as server-sent events; nothing for pieces that show nothing."""

    def last_chunks(self) -> bytes:
        """The end of a stream."""

    def collect(self, pieces: list[Piece]) -> None:
        """Keep pieces for `whole`."""

    def whole(self) -> bytes:
        """The body of a whole answer, once all sequences have finished."""


Prepared = tuple[GenerationRequest, ServedModel, list[Prompt], Style]

MARK_TOKENS = 32
"""Of a prompt's end, in which a mark of reasoning is looked for."""

STREAM_HEADERS = [(b"cache-control", b"no-cache"), (b"x-accel-buffering", b"no")]


def chat_completions(service: Service) -> Handler:
    """The handler of POST /v1/chat/completions."""
    return handler(service, prepare_chat, ChatAnswer)


def completions(service: Service) -> Handler:
    """The handler of POST /v1/completions."""
    return handler(service, prepare_completion, CompletionAnswer)


async def prepare_chat(service: Service, data: dict[str, Any]) -> Prepared:
    """Everything about a chat that can be known before an engine sees it. ApiError."""
    refuse_parts(data.get("messages"))
    request = validate(ChatCompletionRequest, data)
    if request.messages and request.input_ids is not None:
        raise bad_request("messages and input_ids exclude each other", "input_ids")
    if not request.messages and request.input_ids is None:
        raise bad_request("messages is required, but missing", "messages", "missing_required_parameter")
    model = service.generator(request.model)
    params, use = sampling_params(request, model), tool_use(request)
    cut = request.truncate_prompt_tokens
    if request.input_ids is None:
        text = await render_chat(service, request, data, model)
        ids = await encode(text, model, "messages", bool(request.add_special_tokens), check_length=cut is None)
    else:
        (ids,) = as_list(request.input_ids, "input_ids", texts=False, ids=True, several=False)
        check_ids(ids, model, "input_ids")
        text = model.tokenizer.decode(ids[-MARK_TOKENS:], skip_special_tokens=False)
    ids = truncated(ids, cut, params, model)
    asked = Asked(params.constraint, constraint_field(vars(request)))
    if use is None:
        form = output_form(request, model, use, text, asked)
    else:  # a grammar for many tools takes tenths of a second to write
        form = await asyncio.to_thread(output_form, request, model, use, text, asked)
    params = msgspec.structs.replace(
        params,
        constraint=form.asked.constraint,
        think_end_ids=form.think_end_ids,
        think_begin_id=form.think_begin_id,
        max_thinking_tokens=form.max_thinking,
    )
    if form.max_thinking is not None and params.allowed_token_ids and {*form.think_end_ids} - {*params.allowed_token_ids}:
        raise bad_request("allowed_token_ids has not the tokens that end the reasoning", "allowed_token_ids")
    params = fit(params, len(ids), model, request)
    prompt = Prompt(ids, params, constraint_field=form.asked.field, kept=form.kept, reasons=form.reasoning is not None)
    style = _style(request, model, bool(request.logprobs), request.top_logprobs)
    style.parser = form.parser if form.parses else None
    return request, model, [prompt], style


async def prepare_completion(service: Service, data: dict[str, Any]) -> Prepared:
    """The same for a text completion, whose prompts may be several, and token ids. ApiError."""
    request = validate(CompletionRequest, data)
    model = service.generator(request.model)
    params = sampling_params(request, model)
    prompts, cut, field = [], request.truncate_prompt_tokens, constraint_field(vars(request))
    async for item in in_turns(as_list(request.prompt, "prompt", texts=True, ids=True)):
        if isinstance(item, str):
            special = request.add_special_tokens is not False
            ids, text = await encode(item, model, "prompt", special, check_length=cut is None), item
        else:
            check_ids(item, model, "prompt")
            ids, text = item, None
        kept = truncated(ids, cut, params, model)
        if request.echo and (text is None or len(kept) < len(ids)):
            text = model.tokenizer.decode(kept, params.skip_special_tokens)
        ids, text = kept, text or ""
        prompts.append(Prompt(ids, fit(params, len(ids), model, request), text, constraint_field=field))
    style = _style(request, model, request.logprobs is not None, request.logprobs)
    style.echo = bool(request.echo)
    return request, model, prompts, style


def truncated(ids: list[int], count: int | None, params: SamplingParams, model: ServedModel) -> list[int]:
    """The last `count` tokens of a prompt; -1: as many as leave room for the answer. ApiError 400 for other counts."""
    if count is None:
        return ids
    if count == -1:
        limit, _ = model.token_limit()
        count = max(1, limit - max(1, params.max_new_tokens or 1))
    if count < 1:
        raise bad_request(f"truncate_prompt_tokens is {count}, but must be -1 or at least 1", "truncate_prompt_tokens")
    return ids[-count:]


def _style(request: GenerationRequest, model: ServedModel, logprobs: bool, top_logprobs: int | None) -> Style:
    options = request.stream_options
    if options is not None and not request.stream:
        raise bad_request("stream_options needs stream to be true", "stream_options")
    if request.stream:
        for name in ("prompt_logprobs", "return_meta_info", "return_prompt_token_ids"):
            if getattr(request, name) not in (None, False):
                raise bad_request(f"{name} needs stream to be false", name)
    return Style(
        request.model or model.name,
        logprobs,
        top_logprobs or 0,
        include_usage=bool(options and options.include_usage),
        continuous_usage=bool(options and options.continuous_usage_stats),
        extras=Extras(
            token_ids=bool(request.return_token_ids),
            prompt_token_ids=bool(request.return_prompt_token_ids),
            prompt_logprobs=request.prompt_logprobs,
            meta_info=bool(request.return_meta_info),
            cached_tokens_details=bool(request.return_cached_tokens_details),
        ),
    )


def _job(request: GenerationRequest, model: ServedModel, prompts: list[Prompt], request_id: str, arrived_at: float) -> Job:
    return Job(
        model,
        request_id,
        prompts,
        extra_key="|".join(filter(None, (request.extra_key, request.cache_salt))),
        priority=request.priority or 0,
        session=request.prompt_cache_key or "",
        arrived_at=arrived_at,
    )


def handler(
    service: Service,
    prepare: Callable[[Service, dict[str, Any]], Awaitable[Prepared]],
    answer_type: type[Answer],
) -> Handler:
    """A handler of requests that generate: `prepare` makes the job, `answer_type` what goes back."""

    async def handle(headers: Headers, receive: Receive, reply: Reply) -> None:
        arrived_at = time.perf_counter()
        with service.gate.enter():
            data = parse_json(await read_body(headers, receive))
            async with until_disconnect(receive):
                request, model, prompts, style = await prepare(service, data)
                reply.name(request.rid)
                job = _job(request, model, prompts, request.rid or reply.request_id, arrived_at)
                async with Generation(service.backend, job, service.metrics.of(model.name)) as generation:
                    answer = answer_type(style, generation)
                    reply.error_in_stream = answer.failed
                    if not request.stream:
                        await send_whole(generation, answer, reply)
                        return
                    shape = WithTokenIds(answer) if style.extras.token_ids else answer
                    interval = request.stream_interval or service.settings.stream_interval
                    await send_stream(generation, shape, reply, interval)

    return handle


async def send_whole(generation: Generation, answer: AnswerShape, reply: Reply) -> None:
    while generation.open:
        answer.collect(await generation.next())
    await reply.whole(answer.whole())


async def send_stream(generation: Generation, answer: AnswerShape, reply: Reply, interval: int) -> None:
    """The first output is awaited before the status goes out, so that what the engine refuses has its own status. interval: see
    `Gatherer`."""
    gatherer = Gatherer(interval)
    pieces = await generation.next()
    await reply.begin(200, b"text/event-stream; charset=utf-8", STREAM_HEADERS)
    while True:
        chunks = answer.chunks(gatherer.push(pieces))
        if not generation.open:
            await reply.write(chunks + answer.last_chunks(), more=False)
            return
        if chunks:
            await reply.write(chunks)
        pieces = await generation.next()


__all__ = ["chat_completions", "completions", "send_stream", "send_whole"]
