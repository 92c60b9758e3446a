"""What a client is told when something is wrong: OpenAI's nested error body, one exception type, one table of kinds."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from contextlib import contextmanager

import orjson

from raysgl.api.backend import QueueFull
from raysgl.messages import Finish


class ApiError(Exception):
    """Ends a request with an HTTP status. `param` names the request field at fault, `code` is for programs."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        type: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
        retry_after: float | None = None,
        headers: tuple[tuple[bytes, bytes], ...] = (),
    ):
        super().__init__(message)
        self.status, self.message, self.type, self.param, self.code = status, message, type, param, code
        self.retry_after = retry_after
        self._headers = headers

    def info(self) -> dict[str, str | None]:
        return {"message": self.message, "type": self.type, "param": self.param, "code": self.code}

    def body(self) -> bytes:
        return orjson.dumps({"error": self.info()})

    def event(self) -> bytes:
        """The end of a stream that has begun and cannot go on."""
        return b"data: " + self.body() + b"\n\ndata: [DONE]\n\n"

    def headers(self) -> list[tuple[bytes, bytes]]:
        if self.retry_after is None:
            return [*self._headers]
        return [*self._headers, (b"retry-after", str(max(1, math.ceil(self.retry_after))).encode())]


@contextmanager
def renaming(names: dict[str, str]) -> Iterator[None]:
    """An ApiError raised inside that names one of these fields calls it by its other name. `*` stands for a place in a list."""
    try:
        yield
    except ApiError as error:
        if error.param is not None and (name := names.get(_PLACE.sub("*", error.param))) is not None:
            for place in _PLACE.findall(error.param):
                name = name.replace("*", place, 1)
            error.message = error.message.replace(error.param, name, 1)
            error.param = name
        raise


_PLACE = re.compile(r"(?<=\.)\d+(?=\.|$)")


def bad_request(message: str, param: str | None = None, code: str | None = "invalid_value") -> ApiError:
    """400: the client must change its request."""
    return ApiError(400, message, param=param, code=code)


def model_not_found(name: str) -> ApiError:
    return ApiError(404, f"The model {name!r} does not exist", param="model", code="model_not_found")


def queue_full(error: QueueFull) -> ApiError:
    return ApiError(429, str(error), type="rate_limit_error", code="queue_full", retry_after=error.retry_after)


def unavailable(message: str) -> ApiError:
    """503: nobody can do it now; trying again may help."""
    return ApiError(503, message, type="service_unavailable_error", code="unavailable", retry_after=1)


def too_late(message: str) -> ApiError:
    """504: the client's own deadline has passed."""
    return ApiError(504, message, type="timeout_error", code="deadline_exceeded")


def internal() -> ApiError:
    """500 without details: they are in the log."""
    return ApiError(500, "The server had an error while processing your request", type="server_error", code="internal_error")


def from_engine(finish: Finish, constraint_field: str | None = None) -> ApiError:
    """An engine's refusal or failure. `constraint_field`: what the request calls its constraint."""
    status, message = finish.status, finish.message
    if status == 429:
        return queue_full(QueueFull(message, finish.retry_after or 1.0))
    if status == 503:
        return unavailable(message)
    if status == 504:
        return too_late(message)
    if 400 <= status < 500:
        if finish.param == "constraint" and constraint_field is not None:
            return ApiError(status, f"{constraint_field}: {message}", param=constraint_field, code="invalid_value")
        return ApiError(status, message, code="invalid_request")
    return internal()
