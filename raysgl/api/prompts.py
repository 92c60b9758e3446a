"""From `messages` or `prompt` to token ids, checked."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterable
from typing import Any, TypeVar

from raysgl.api.call import current
from raysgl.api.chat_template import RESERVED, ChatTemplate, TemplateError
from raysgl.api.errors import ApiError, bad_request
from raysgl.api.protocol import ChatInput
from raysgl.api.request_template import render_untrusted
from raysgl.api.served_model import ServedModel
from raysgl.api.service import Service
from raysgl.api.tool_use import NO_PARAMETERS

T = TypeVar("T")

THINKING_SWITCHES = ("enable_thinking", "thinking")
"""What chat templates call the variable that turns thinking on or off."""

INLINE_MESSAGES = 256
"""More messages are rendered in a thread: about 5 µs a message."""


async def render_chat(service: Service, request: ChatInput, data: dict[str, Any], model: ServedModel) -> str:
    """The prompt text. `data` is the request as it was sent: templates get its own messages and tools. ApiError 400."""
    messages: list[dict[str, Any]] = data["messages"]
    template, own = model.chat_template, request.chat_template
    if own and not service.settings.trust_request_chat_template:
        raise bad_request(
            "chat_template is refused unless the server's trust_request_chat_template is set",
            "chat_template",
            "unsupported_parameter",
        )
    if template is None and not own:
        raise bad_request(f"{model.name!r} has no chat template; use /v1/completions", "messages", "unsupported_parameter")
    settings = _template_settings(request, messages, template)
    settings["tools"] = _shown_tools(request, data, template)
    try:
        if own:
            return await render_untrusted(own, model.tokenizer.special_tokens, messages, settings)
        if len(messages) > INLINE_MESSAGES:
            return await asyncio.to_thread(lambda: template.render(messages, **settings))
        return template.render(messages, **settings)
    except TemplateError as error:
        raise bad_request(str(error), "chat_template" if own else "messages") from None


def _template_settings(request: ChatInput, messages: list[dict[str, Any]], template: ChatTemplate | None) -> dict[str, Any]:
    """What the template is rendered with beside the messages. A field that it does not read is refused. ApiError 400."""
    settings = dict(request.chat_template_kwargs or {})
    for name in settings:
        if name in RESERVED or not name.isidentifier():
            raise bad_request(f"chat_template_kwargs must not have {name[:40]!r}", "chat_template_kwargs")
    if request.documents:
        if not _reads(request, template, "documents"):
            raise _has_no("documents")
        settings["documents"] = request.documents
    if request.reasoning_effort:
        settings = _effort(request, request.reasoning_effort, template) | settings
    continues = bool(request.continue_final_message)
    if continues and request.add_generation_prompt:
        raise bad_request("continue_final_message and add_generation_prompt exclude each other", "continue_final_message")
    if continues and messages[-1]["role"] != "assistant":
        raise bad_request("continue_final_message needs a last message of the assistant", "continue_final_message")
    settings["continue_final_message"] = continues or _is_prefix(messages[-1])
    settings["add_generation_prompt"] = request.add_generation_prompt is not False
    return settings


def _reads(request: ChatInput, template: ChatTemplate | None, name: str) -> bool:
    """Whether the template has a variable; of a request's own anything is believed."""
    return bool(request.chat_template) or (template is not None and name in template.variables)


def _has_no(field: str) -> ApiError:
    return bad_request(f"The model's chat template has no {field}", field, "unsupported_parameter")


def _effort(request: ChatInput, effort: str, template: ChatTemplate | None) -> dict[str, Any]:
    """What reasoning_effort sets: the template's variable of that name, and its switch for thinking, which `none` turns off."""
    found: dict[str, Any] = {name: effort != "none" for name in THINKING_SWITCHES if _reads(request, template, name)}
    if _reads(request, template, "reasoning_effort"):
        found["reasoning_effort"] = effort
    if not found:
        raise _has_no("reasoning_effort")
    return found


def _shown_tools(request: ChatInput, data: dict[str, Any], template: ChatTemplate | None) -> list[dict[str, Any]] | None:
    """All of them whatever the choice is, so that the prompt stays the same from turn to turn; none where nothing may be called: a
    model that sees tools calls them."""
    if not request.tools or request.tool_choice == "none":
        return None
    if request.tool_choice in (None, "auto") and not _reads(request, template, "tools"):
        raise _has_no("tools")
    return [_with_parameters(tool) for tool in data["tools"]]


def _with_parameters(tool: dict[str, Any]) -> dict[str, Any]:
    """Templates look into a function's parameters, which may have been left out."""
    function = tool["function"]
    if function.get("parameters") is not None:
        return tool
    return {**tool, "function": {**function, "parameters": NO_PARAMETERS}}


def _is_prefix(message: dict[str, Any]) -> bool:
    """DeepSeek's and Mistral's way to say continue_final_message."""
    return message["role"] == "assistant" and message.get("prefix") is True


PROBE_CHARS = 16
"""Characters for each token that fits. Of a longer text only so much is tokenised at first: a token has four on average, so it
mostly says that the rest need not be."""
PROBE_SLACK = 64
"""The last tokens of a beginning are others than those of the whole."""
MAX_PROMPTS = 2048
"""Prompts in one request."""


async def in_turns(items: Iterable[T]) -> AsyncIterator[T]:
    """The items; other requests have their turn between them."""
    for i, item in enumerate(items):
        if i:
            await asyncio.sleep(0)
        yield item


async def encode(text: str, model: ServedModel, param: str, add_special_tokens: bool, check_length: bool = True) -> list[int]:
    """Token ids. Texts that are far too long are refused before they are tokenised. ApiError 400."""
    tokenizer, since = model.tokenizer, time.perf_counter()
    if check_length:
        limit, what = model.token_limit()
        if len(text) > limit and (fewest := tokenizer.fewest_tokens(text)) > limit:
            raise bad_request(
                f"The prompt has at least {fewest} tokens, but the {what} of {model.name!r} holds {limit}, answer included",
                param,
                "context_length_exceeded",
            )
        if len(text) > (most := limit * PROBE_CHARS):
            probe = await tokenizer.encode_async(text[:most], add_special_tokens)
            if len(probe) > limit + PROBE_SLACK:
                raise bad_request(
                    f"The prompt has more than {limit} tokens, which is what the {what} of {model.name!r} holds, answer included",
                    param,
                    "context_length_exceeded",
                )
    ids = await tokenizer.encode_async(text, add_special_tokens)
    current().tokenising(since)
    if not ids and check_length:
        raise bad_request(f"{param} is empty", param)
    return ids


def as_list(value: Any, param: str, *, texts: bool, ids: bool, several: bool = True) -> list[str] | list[list[int]]:
    """A text or texts, or token ids or lists of them, as a list. ApiError 400 for anything else, and for an empty list."""
    if texts and isinstance(value, str):
        return [value]
    if isinstance(value, list) and value:
        if len(value) > MAX_PROMPTS and type(value[0]) is not int:
            raise bad_request(f"{param} has {len(value)} prompts, but may have at most {MAX_PROMPTS}", param)
        if texts and all(isinstance(item, str) for item in value):
            return value
        if ids and _is_ids(value):
            return [value]
        if several and ids and all(isinstance(item, list) and _is_ids(item) for item in value):
            return value
    kinds = ["a string, a list of strings"] * texts + (
        ["a list of token ids"] + ["a list of lists of token ids"] * several
    ) * ids
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
