"""Fields that other servers know and this one does not yet: refused by name, unless their value asks for nothing."""

from __future__ import annotations

from collections.abc import Container
from typing import Any

from raysgl.api.errors import ApiError, bad_request

NOTHING: tuple[Any, ...] = (None, False, "", [], {})

ASKS_FOR_NOTHING: dict[str, tuple[Any, ...]] = {
    "functions": NOTHING,
    "function_call": (None, "none"),
    "best_of": (None, 1),
    "suffix": (None, ""),
    "use_beam_search": NOTHING,
    "modalities": (None, ["text"]),
    "audio": NOTHING,
    "prediction": NOTHING,
    "web_search_options": NOTHING,
    "verbosity": NOTHING,
    "max_thinking_tokens": NOTHING,
    "lora_path": NOTHING,
    "session_params": NOTHING,
    "custom_logit_processor": NOTHING,
    "custom_params": NOTHING,
    "return_hidden_states": NOTHING,
    "spaces_between_special_tokens": (None, True),
    "bootstrap_host": NOTHING,
    "bootstrap_port": NOTHING,
    "bootstrap_room": NOTHING,
    "routed_dp_rank": NOTHING,
    "input_embeds": NOTHING,
    "image_data": NOTHING,
    "video_data": NOTHING,
    "audio_data": NOTHING,
    "return_routed_experts": NOTHING,
    "return_entropy": NOTHING,
    "return_bytes": NOTHING,
    "require_reasoning": NOTHING,
    "beam_width": NOTHING,
    "watermark": NOTHING,
    "start_step": NOTHING,
    "profile_by_stage": NOTHING,
    "profile_stages": NOTHING,
    "profile_prefix": NOTHING,
    "merge_profiles": NOTHING,
    "detailed_annotations": NOTHING,
    "is_async": NOTHING,
    "keep_pause": NOTHING,
    "token_step": (None, 0),
}
"""name -> values that are the same as leaving it out."""

INSTEAD = {"functions": "tools", "function_call": "tool_choice"}


def refuse_unsupported(known: Container[str], data: dict[str, Any]) -> None:
    """ApiError 400 for the first field of `data` that is not supported; drops those that ask for nothing."""
    for name in [name for name in data if name not in known and name in ASKS_FOR_NOTHING]:
        value = data[name]
        if not any(value == nothing and type(value) is type(nothing) for nothing in ASKS_FOR_NOTHING[name]):
            hint = f"; use {INSTEAD[name]}" if name in INSTEAD else ""
            raise bad_request(f"{name} is not supported{hint}", name, "unsupported_parameter")
        del data[name]


def refuse_parts(messages: Any) -> None:
    """ApiError 400 for the first content part that is no text (images and the like)."""
    for i, message in enumerate(messages if isinstance(messages, list) else ()):
        content = message.get("content") if isinstance(message, dict) else None
        for j, part in enumerate(content if isinstance(content, list) else ()):
            kind = part.get("type") if isinstance(part, dict) else None
            if isinstance(kind, str) and kind != "text":
                where = f"messages.{i}.content.{j}"
                raise _unsupported_part(where, kind)


def _unsupported_part(where: str, kind: str) -> ApiError:
    return bad_request(f"{where} has the type {kind[:40]!r}, but only text parts are supported", where, "unsupported_parameter")
