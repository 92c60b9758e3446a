"""From `messages` or `prompt` to token ids, checked."""

from __future__ import annotations

from typing import Any

from raysgl.api.chat_template import RESERVED, TemplateError
from raysgl.api.errors import ApiError, bad_request
from raysgl.api.protocol import ChatInput
from raysgl.api.served_model import ServedModel


def render_chat(request: ChatInput, messages: list[dict[str, Any]], model: ServedModel) -> str:
    """The prompt text. `messages` is the request's own, as it was sent. ApiError 400."""
    template = model.chat_template
    if template is None:
        raise bad_request(f"{model.name!r} has no chat template; use /v1/completions", "messages", "unsupported_parameter")
    kwargs = dict(request.chat_template_kwargs or {})
    for name in kwargs:
        if name in RESERVED or not name.isidentifier():
            raise bad_request(f"chat_template_kwargs must not have {name[:40]!r}", "chat_template_kwargs")
    if request.reasoning_effort is not None:
        if "reasoning_effort" not in template.variables:
            raise bad_request(
                f"The chat template of {model.name!r} has no reasoning_effort", "reasoning_effort", "unsupported_parameter"
            )
        kwargs["reasoning_effort"] = request.reasoning_effort
    continues = bool(request.continue_final_message)
    if continues and request.add_generation_prompt:
        raise bad_request("continue_final_message and add_generation_prompt exclude each other", "continue_final_message")
    if continues and messages[-1]["role"] != "assistant":
        raise bad_request("continue_final_message needs a last message of the assistant", "continue_final_message")
    try:
        return template.render(
            messages,
            add_generation_prompt=request.add_generation_prompt is not False,
            continue_final_message=continues,
            **kwargs,
        )
    except TemplateError as error:
        raise bad_request(str(error), "messages") from None


async def encode(text: str, model: ServedModel, param: str, add_special_tokens: bool, check_length: bool = True) -> list[int]:
    """Token ids. Texts that are far too long are refused before they are tokenised. ApiError 400."""
    tokenizer = model.tokenizer
    if check_length:
        limit, what = model.token_limit()
        if len(text) > limit and (fewest := tokenizer.fewest_tokens(text)) > limit:
            raise bad_request(
                f"The prompt has at least {fewest} tokens, but the {what} of {model.name!r} holds {limit}, answer included",
                param,
                "context_length_exceeded",
            )
    ids = await tokenizer.encode_async(text, add_special_tokens)
    if not ids and check_length:
        raise bad_request(f"{param} is empty", param)
    return ids


def as_list(value: Any, param: str, *, texts: bool, ids: bool) -> list[str] | list[list[int]]:
    """A text or texts, or token ids or lists of them, as a list. ApiError 400 for anything else, and for an empty list."""
    if texts and isinstance(value, str):
        return [value]
    if isinstance(value, list) and value:
        if texts and all(isinstance(item, str) for item in value):
            return value
        if ids and _is_ids(value):
            return [value]
        if ids and all(isinstance(item, list) and _is_ids(item) for item in value):
            return value
    kinds = ["a string, a list of strings"] * texts + ["a list of token ids, a list of lists of token ids"] * ids
    raise bad_request(f"{param} must be {', '.join(kinds)}; none of them empty", param)


def check_ids(ids: list[int], model: ServedModel, param: str) -> None:
    """ApiError 400 for an id that is not in the vocabulary."""
    if min(ids) < 0 or max(ids) >= model.vocab_size:
        wrong = next(i for i in ids if not 0 <= i < model.vocab_size)
        raise _wrong_id(wrong, model, param)


def _wrong_id(wrong: int, model: ServedModel, param: str) -> ApiError:
    return bad_request(f"{param} has the token id {wrong}, but ids must be from 0 to {model.vocab_size - 1}", param)


def _is_ids(value: list[Any]) -> bool:
    return bool(value) and all(type(item) is int for item in value)
