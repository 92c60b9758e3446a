"""A log line for each request (setting `log_requests`), in detail by level:

0: who, what, how long, how many tokens; 1: and the numbers of the sampling parameters; 2: and the beginnings of prompts and
answers; 3: and all of them. Below level 2 nothing that a user wrote is logged.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import msgspec
import orjson

from raysgl import logs
from raysgl.api.call import Call

if TYPE_CHECKING:
    from raysgl.api.generation import Job

log = logging.getLogger(__name__)

TEXT_LEVEL = 2
BEGINNING = 2048
"""Characters of each prompt and answer that level 2 shows."""


def keeps_text() -> bool:
    """Whether answers' texts will be wanted."""
    return logs.now.requests and logs.now.requests_level >= TEXT_LEVEL


def log_request(call: Call) -> None:
    """A request is over."""
    if not logs.now.requests or call.quiet or not log.isEnabledFor(logging.INFO):
        return
    fields = _fields(call)
    shown = " ".join(f"{name}={_plain(value)}" for name, value in fields.items())
    log.info("request %s", shown if logs.now.form == "text" else call.request_id, extra={logs.FIELDS: fields})


def _fields(call: Call) -> dict[str, Any]:
    ends = call.ended_at
    fields: dict[str, Any] = {
        "request_id": call.request_id,
        "key": call.key.name if call.key else None,
        "method": call.method,
        "path": call.path or "unknown",
        "status": call.status,
        "seconds": round(ends - call.started_at, 6),
    }
    if call.job is not None:
        fields |= {
            "model": call.model,
            "prompt_tokens": call.prompt_tokens,
            "cached_tokens": call.cached_tokens,
            "completion_tokens": call.completion_tokens,
            "finish_reasons": ",".join(dict.fromkeys(call.finish_reasons)),
            "prepare_s": _between(call.started_at, call.submitted_at),
            "queue_s": call.queued_s and round(call.queued_s, 6),
            "first_token_s": _between(call.started_at, call.first_token_at),
        }
        fields |= _details(call, call.job)
    return {name: value for name, value in fields.items() if value is not None}


def _details(call: Call, job: Job) -> dict[str, Any]:
    level = logs.now.requests_level
    found: dict[str, Any] = {}
    if level >= 1:
        sampling = msgspec.to_builtins(job.prompts[0].sampling)
        found["sampling"] = {name: value for name, value in sampling.items() if isinstance(value, (int, float))}
    if level >= TEXT_LEVEL:
        most = BEGINNING if level == TEXT_LEVEL else None
        decode = job.model.tokenizer.decode
        # A token is a byte at least, so these tokens hold the beginning.
        found["prompts"] = [decode(prompt.input_ids[:most], False)[:most] for prompt in job.prompts]
        found["answers"] = ["".join(parts)[:most] for parts in call.texts or []]
    return found


def _between(start: float, end: float) -> float | None:
    return round(end - start, 6) if end else None


def _plain(value: Any) -> str:
    """As it is if it is one word, else as JSON: a line stays a line whatever a client sent."""
    text = value if isinstance(value, str) else orjson.dumps(value).decode()
    return text if text and text.isprintable() and " " not in text and '"' not in text else orjson.dumps(value).decode()
