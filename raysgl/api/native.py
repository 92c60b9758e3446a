"""POST /generate: SGLang's own endpoint. Text or token ids in; text, token ids and what is known about them out."""

from __future__ import annotations

import random
import time
from typing import Any

from starlette.datastructures import Headers
from starlette.types import Receive

from raysgl.api.constraint_request import constraint_field, constraint_of
from raysgl.api.errors import ApiError, bad_request
from raysgl.api.generate import send_stream, send_whole
from raysgl.api.generation import Generation, Job, Prompt
from raysgl.api.http import Handler, Reply, read_body, until_disconnect
from raysgl.api.native_answer import NativeAnswer, NativeStyle
from raysgl.api.native_protocol import GenerateRequest, Items, NativeSampling, native_sampling
from raysgl.api.prompts import as_list, check_ids, encode, in_turns
from raysgl.api.protocol import parse_json, validate
from raysgl.api.sampling_request import (
    allowed_token_ids,
    bad_words,
    logit_bias,
    resolve_length,
    stop_strings,
    verified,
)
from raysgl.api.served_model import ServedModel
from raysgl.api.service import Service
from raysgl.api.stop_regex import stop_patterns
from raysgl.sampling.constraint import Constraint
from raysgl.sampling.params import SamplingParams

DEFAULT_MAX_NEW_TOKENS = 128
SAME_NAME = (
    "min_new_tokens",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "frequency_penalty",
    "presence_penalty",
    "repetition_penalty",
    "n",
    "ignore_eos",
    "no_stop_trim",
    "skip_special_tokens",
)
REQUEST_NAMES = {
    "logprobs": "return_logprob",
    "top_logprobs": "top_logprobs_num",
    "prompt_logprobs": "top_logprobs_num",
    "token_ids_logprob": "token_ids_logprob",
}
"""Sampling parameters that are fields of the request itself; the others are in its `sampling_params`."""


def generate(service: Service) -> Handler:
    """The handler of POST /generate."""

    async def handle(headers: Headers, receive: Receive, reply: Reply) -> None:
        arrived_at = time.perf_counter()
        with service.gate.enter():
            data = parse_json(await read_body(headers, receive))
            async with until_disconnect(receive):
                request, job, style = await prepare(service, data, reply.request_id, arrived_at)
                reply.name(job.request_id)
                async with Generation(service.backend, job, service.metrics.of(job.model.name)) as generation:
                    answer = NativeAnswer(style, generation)
                    reply.error_in_stream = answer.failed
                    if request.stream:
                        await send_stream(generation, answer, reply, style.interval)
                    else:
                        await send_whole(generation, answer, reply)

    return handle


async def prepare(
    service: Service, data: dict[str, Any], request_id: str, arrived_at: float
) -> tuple[GenerateRequest, Job, NativeStyle]:
    """Everything about a request that can be known before an engine sees it. ApiError."""
    request = validate(GenerateRequest, data)
    model = service.generator(request.model)
    given = [name for name in ("text", "input_ids") if getattr(request, name) is not None]
    if len(given) != 1:
        raise bad_request("exactly one of text and input_ids is needed", given[-1] if given else "text")
    name = given[0]
    value = getattr(request, name)
    inputs = as_list(value, name, texts=name == "text", ids=name == "input_ids")
    single = inputs is not value
    items = Items(request, None if single else len(inputs))
    ids = _request_ids(request, items, len(inputs), single, request_id)
    prompts, interval = [], service.settings.stream_interval
    async for i, item in in_turns(enumerate(inputs)):
        sampling = native_sampling(items.of("sampling_params", i, {}))
        interval = sampling.stream_interval or interval
        params = _sampling_params(sampling, items, i, model)
        if isinstance(item, str):
            tokens = await encode(item, model, name, add_special_tokens=True)
        else:
            check_ids(item, model, name)
            tokens = item
        if params.prompt_logprobs_start >= len(tokens):
            raise bad_request(
                f"logprob_start_len is {params.prompt_logprobs_start}, but the prompt has {len(tokens)} tokens",
                "logprob_start_len",
            )
        params = resolve_length(params, len(tokens), model, DEFAULT_MAX_NEW_TOKENS, _field_name, name)
        own_key = "|".join(filter(None, (items.of("extra_key", i), request.cache_salt)))
        field = constraint_field(vars(sampling))
        constraint = field and f"sampling_params.{field}"
        prompts.append(Prompt(tokens, params, request_id=ids[i], extra_key=own_key, constraint_field=constraint))
    if len({prompt.sampling.n for prompt in prompts}) > 1:
        raise bad_request("sampling_params.n must be the same for all prompts", "sampling_params.n")
    incremental = request.incremental_streaming_output
    style = NativeStyle(
        single=single and prompts[0].sampling.n == 1,
        logprob_text=bool(request.return_text_in_logprobs),
        prompt_ids=bool(request.return_prompt_token_ids),
        interval=interval,
        incremental=service.settings.incremental_streaming_output if incremental is None else incremental,
    )
    job_id = ids[0] if single else request.rid if isinstance(request.rid, str) else request_id
    job = Job(model, job_id, prompts, priority=request.priority or 0, session=request.routing_key or "", arrived_at=arrived_at)
    return request, job, style


def _request_ids(request: GenerateRequest, items: Items, count: int, single: bool, request_id: str) -> list[str]:
    """An id for each prompt. ApiError 400 for ids that are empty, too long or there twice."""
    if single:
        ids = [items.of("rid", 0, request_id)]
    elif isinstance(request.rid, list):
        ids = [items.of("rid", i) for i in range(count)]
    else:
        ids = [f"{request.rid or request_id}_{i}" for i in range(count)]
    if not all(0 < len(rid) <= 300 for rid in ids) or len(set(ids)) < len(ids):
        raise bad_request("rid must be one to 256 characters, and different for each prompt", "rid")
    return ids


def _sampling_params(sampling: NativeSampling, items: Items, index: int, model: ServedModel) -> SamplingParams:
    settings: dict[str, Any] = {name: value for name in SAME_NAME if (value := getattr(sampling, name)) is not None}
    seed = sampling.sampling_seed
    settings["max_new_tokens"] = sampling.max_new_tokens
    settings["seed"] = random.getrandbits(63) if seed is None else seed
    settings["stop"] = stop_strings(sampling.stop)
    settings["stop_regex"] = stop_patterns(sampling.stop_regex)
    settings["allowed_token_ids"] = allowed_token_ids(sampling.allowed_token_ids, model, sampling.min_new_tokens)
    settings["bad_words"] = bad_words(sampling.bad_words, model)
    settings["constraint"] = _constraint(sampling)
    settings["stop_token_ids"] = tuple(sampling.stop_token_ids or ())
    settings["logit_bias"] = logit_bias(sampling.logit_bias)
    if items.of("return_logprob", index, False):
        top = items.of("top_logprobs_num", index, 0)
        settings["logprobs"] = True
        settings["top_logprobs"] = top
        settings["token_ids_logprob"] = tuple(items.of("token_ids_logprob", index, ()))
        start = items.of("logprob_start_len", index, -1)
        if start < -1:
            raise bad_request(f"logprob_start_len is {start}, but must be at least -1", "logprob_start_len")
        if start >= 0:
            settings["prompt_logprobs"], settings["prompt_logprobs_start"] = top, start
    else:
        for name in ("top_logprobs_num", "token_ids_logprob"):
            if items.of(name, index):
                raise bad_request(f"{name} needs return_logprob to be true", name)
        if items.of("logprob_start_len", index, -1) != -1:
            raise bad_request("logprob_start_len needs return_logprob to be true", "logprob_start_len")
    return verified(settings, model, _field_name)


def _constraint(sampling: NativeSampling) -> Constraint | None:
    try:
        return constraint_of(vars(sampling))
    except ApiError as error:
        raise bad_request(f"sampling_params: {error.message}", f"sampling_params.{error.param}", error.code) from None


def _field_name(field: str) -> str:
    return REQUEST_NAMES.get(field) or ("sampling_params." + {"seed": "sampling_seed"}.get(field, field))
