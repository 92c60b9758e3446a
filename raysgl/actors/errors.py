"""Errors from other processes as one sentence for a person."""

from __future__ import annotations

from ray.exceptions import RayTaskError


def sentence(error: BaseException) -> str:
    """What went wrong, without the traceback that Ray wraps around it."""
    cause = error
    while isinstance(cause, RayTaskError) and cause.cause is not None:
        cause = cause.cause
    text = str(cause).strip().splitlines()
    if not text:
        return type(cause).__name__
    # Our own errors are sentences; of others the last line says most.
    return text[0] if isinstance(cause, ValueError | OSError) else f"{type(cause).__name__}: {text[-1]}"
