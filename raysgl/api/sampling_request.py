"""From a request's fields to verified `SamplingParams`: names, defaults, limits."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import msgspec

from raysgl.api.constraint_request import constraint_of
from raysgl.api.errors import bad_request
from raysgl.api.protocol import ChatCompletionRequest, CompletionRequest, GenerationRequest
from raysgl.api.served_model import ServedModel
from raysgl.api.stop_regex import stop_patterns
from raysgl.api.stop_strings import MAX_STOP_LENGTH
from raysgl.sampling.params import InvalidParameter, SamplingParams

SAME_NAME = (
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
COMPLETION_MAX_TOKENS = 16
"""OpenAI's default of max_tokens for text completions."""


def sampling_params(request: ChatCompletionRequest | CompletionRequest, model: ServedModel) -> SamplingParams:
    """All settings but `max_new_tokens`' default, which depends on the prompt (`fit`). ApiError 400 naming the field."""
    settings = dict(model.defaults)
    settings.pop("max_new_tokens", None)
    settings.update({name: value for name in SAME_NAME if (value := getattr(request, name)) is not None})
    settings["max_new_tokens"] = request.max_tokens
    if request.min_tokens is not None:
        settings["min_new_tokens"] = request.min_tokens
    settings["seed"] = random.getrandbits(63) if request.seed is None else request.seed
    settings["stop"] = stop_strings(request.stop)
    settings["stop_token_ids"] = tuple(request.stop_token_ids or ())
    settings["stop_regex"] = stop_patterns(request.stop_regex)
    if request.include_stop_str_in_output:
        settings["no_stop_trim"] = True
    settings["logit_bias"] = logit_bias(request.logit_bias)
    settings["allowed_token_ids"] = allowed_token_ids(request.allowed_token_ids, model, request.min_tokens)
    settings["bad_words"] = bad_words(request.bad_words, model)
    settings["constraint"] = constraint_of(vars(request))
    if isinstance(request, ChatCompletionRequest):
        if request.max_completion_tokens is not None:
            settings["max_new_tokens"] = request.max_completion_tokens
        if request.top_logprobs and not request.logprobs:
            raise bad_request("top_logprobs needs logprobs to be true", "top_logprobs")
        settings["logprobs"] = bool(request.logprobs)
        settings["top_logprobs"] = request.top_logprobs or 0
    else:
        settings["logprobs"] = request.logprobs is not None
        settings["top_logprobs"] = request.logprobs or 0
        if request.echo:
            settings["prompt_logprobs"] = request.logprobs
    if request.prompt_logprobs is not None:
        settings["prompt_logprobs"] = max(request.prompt_logprobs, settings.get("prompt_logprobs") or 0)
    return verified(settings, model, lambda field: field_name(field, request))


def verified(settings: dict[str, Any], model: ServedModel, name_of: Callable[[str], str]) -> SamplingParams:
    """`settings` by `SamplingParams` name. ApiError 400; `name_of` says what the request calls a parameter."""
    params = SamplingParams(**settings)
    try:
        params.verify(model.vocab_size)
    except InvalidParameter as error:
        name = name_of(error.field)
        value = repr(list(error.value) if isinstance(error.value, tuple) else error.value)  # a JSON list is a tuple by now
        value = value if len(value) <= 100 else value[:100] + "..."
        raise bad_request(f"{name} is {value}, but must be {error.allowed}", name) from None
    return params


def fit(params: SamplingParams, prompt_tokens: int, model: ServedModel, request: GenerationRequest) -> SamplingParams:
    """Resolve `max_new_tokens` for a prompt of so many tokens. ApiError 400 where prompt or answer can never fit."""
    chat = isinstance(request, ChatCompletionRequest)
    default = model.defaults.get("max_new_tokens") if chat else COMPLETION_MAX_TOKENS
    prompt = "messages" if chat else "prompt"
    return resolve_length(params, prompt_tokens, model, default, lambda field: field_name(field, request), prompt)


def resolve_length(
    params: SamplingParams,
    prompt_tokens: int,
    model: ServedModel,
    default: int | None,
    name_of: Callable[[str], str],
    prompt_name: str,
) -> SamplingParams:
    """`fit` for any request. default: of max_new_tokens, as far as there is room; None: all the room there is."""
    limit, what = model.token_limit()
    room = limit - prompt_tokens
    asked = params.max_new_tokens
    if room < (0 if asked == 0 else 1):
        raise bad_request(
            f"The prompt has {prompt_tokens} tokens, but the {what} of {model.name!r} holds {limit}, answer included",
            prompt_name,
            "context_length_exceeded",
        )
    if asked is None:
        asked = room if default is None else min(default, room)
        if params.min_new_tokens > asked:
            least, most = name_of("min_new_tokens"), name_of("max_new_tokens")
            raise bad_request(f"{least} is {params.min_new_tokens}, but must be at most {most} ({asked})", least)
    elif asked > room:
        name = name_of("max_new_tokens")
        raise bad_request(
            f"{name} is {asked} and the prompt has {prompt_tokens} tokens, together {asked + prompt_tokens}, "
            f"but the {what} of {model.name!r} holds {limit}",
            name,
            "context_length_exceeded",
        )
    return msgspec.structs.replace(params, max_new_tokens=asked)


def field_name(field: str, request: GenerationRequest) -> str:
    """What the request calls a sampling parameter."""
    chat = isinstance(request, ChatCompletionRequest)
    if field == "max_new_tokens":
        return "max_completion_tokens" if chat and request.max_completion_tokens is not None else "max_tokens"
    if field == "top_logprobs" and not chat:
        return "logprobs"
    return "min_tokens" if field == "min_new_tokens" else field


def stop_strings(stop: str | list[str] | None) -> tuple[str, ...]:
    stops = (stop,) if isinstance(stop, str) else tuple(stop or ())
    if any(len(text) > MAX_STOP_LENGTH for text in stops):
        raise bad_request(f"stop must have strings of at most {MAX_STOP_LENGTH} characters", "stop")
    return stops


def allowed_token_ids(ids: list[int] | None, model: ServedModel, min_new_tokens: int | None) -> tuple[int, ...]:
    """ApiError 400 for a list that leaves nothing to sample."""
    if ids is not None and not ids:
        raise bad_request("allowed_token_ids must not be empty", "allowed_token_ids")
    if ids and min_new_tokens and set(ids) <= set(model.eos_token_ids):
        raise bad_request(
            "allowed_token_ids has only tokens that end the answer, which needs others first", "allowed_token_ids"
        )
    return tuple(dict.fromkeys(ids or ()))


def bad_words(words: list[str] | None, model: ServedModel) -> tuple[tuple[int, ...], ...]:
    """The words' tokens at the beginning of a text and behind a space. ApiError 400."""
    found: dict[tuple[int, ...], None] = {}
    for word in words or ():
        if not word.strip() or len(word) > MAX_STOP_LENGTH:
            raise bad_request(f"bad_words must have words of 1 to {MAX_STOP_LENGTH} characters", "bad_words")
        for spelling in (word, " " + word.lstrip()):
            ids = tuple(model.tokenizer.encode(spelling, add_special_tokens=False))
            if ids:
                found[ids] = None
    return tuple(found)


def logit_bias(bias: dict[str, float] | None) -> dict[int, float] | None:
    if not bias:
        return None
    ids = {}
    for key, value in bias.items():
        if not (key.isascii() and key.isdigit() and len(key) < 10):
            raise bad_request(f"logit_bias has the key {key[:40]!r}, but keys must be token ids", "logit_bias")
        ids[int(key)] = value
    return ids
