"""One HTTP request: who sent it, and what came of it.

`Calls` makes a `Call` for every request and puts it where all code that runs for the request finds it (`current`). The inner
layers write to it what they learn; keys' limits, metrics, logs and traces read it at the end, so that they attach in one place.
"""

from __future__ import annotations

import math
import time
import uuid
from collections.abc import Callable, Iterable
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from raysgl.api.errors import bad_request, too_late
from raysgl.api.keys import Key
from raysgl.api.limits import Allowance

if TYPE_CHECKING:
    from raysgl.api.generation import Job
TIMEOUT_HEADER = "X-Request-Timeout"
LONGEST_TIMEOUT_S = 7 * 24 * 3600.0


@dataclass(slots=True)
class Call:
    """`path` is the endpoint's, empty where there is none. Times are time.perf_counter() in seconds."""

    request_id: str
    method: str = ""
    path: str = ""
    headers: Headers | None = None
    started_at: float = field(default_factory=time.perf_counter)
    started_ns: int = field(default_factory=time.time_ns)
    """The same moment on the wall's clock."""
    ended_at: float = 0.0
    status: int = 0
    """0: the client went away before an answer began."""
    key: Key | None = None
    allowance: Allowance | None = None
    quiet: bool = False
    """Probes and scrapes are not logged."""

    job: Job | None = None
    """What was asked of the backend; and, if they are wanted, the parts of each sequence's text."""
    texts: list[list[str]] | None = None
    model: str = ""
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    finish_reasons: list[str] = field(default_factory=list)
    tokenised: tuple[float, float] | None = None
    """From the first text's beginning to the last one's end."""
    submitted_at: float = 0.0
    routed_at: float = 0.0
    """When all prompts had a replica."""
    first_token_at: float = 0.0
    generated_at: float = 0.0
    """When the last token came."""
    queued_s: float | None = None
    """How long the first sequence waited in the engine, in seconds; then, until its first token:"""
    prefill_s: float | None = None

    def time_left(self) -> float | None:
        """Seconds until the client wants no answer any more (X-Request-Timeout); None: it did not say. ApiError 400, or 504 if the time
        is up already."""
        given = self.headers.get(TIMEOUT_HEADER) if self.headers is not None else None
        if given is None:
            return None
        try:
            seconds = float(given)
        except ValueError:
            seconds = math.nan
        if not 0 < seconds <= LONGEST_TIMEOUT_S:
            message = (
                f"{TIMEOUT_HEADER} is {given[:40]!r}, but must be a number of seconds above 0, at most {LONGEST_TIMEOUT_S:.0f}"
            )
            raise bad_request(message, TIMEOUT_HEADER)
        left = self.started_at + seconds - time.perf_counter()
        if left <= 0:
            raise too_late("the request's time was up before it could begin")
        return left

    def begin(self, model: str, prompt_tokens: int, job: Job | None = None) -> None:
        """Prompts are ready to be computed. ApiError 429 if the key has not so many tokens left."""
        self.model, self.job, self.submitted_at = model, job, time.perf_counter()
        self.prompt_tokens += prompt_tokens
        if self.allowance is not None:
            self.allowance.spend_prompt(prompt_tokens)

    def tokenising(self, since: float) -> None:
        """Some text has been tokenised just now."""
        self.tokenised = (self.tokenised[0] if self.tokenised else since, time.perf_counter())

    def engine_times(self, queued_s: float, prefill_s: float) -> None:
        """The first sequence's are kept."""
        if self.queued_s is None:
            self.queued_s, self.prefill_s = queued_s, prefill_s

    def end(self, completion_tokens: int, cached_tokens: int = 0) -> None:
        """What they came to, however they ended."""
        self.completion_tokens += completion_tokens
        self.cached_tokens += cached_tokens
        if self.allowance is not None:
            self.allowance.spend_answer(completion_tokens)


_CALL: ContextVar[Call | None] = ContextVar("raysgl_call", default=None)


def current() -> Call:
    """The request that this code runs for; a blank one outside of requests."""
    return _CALL.get() or Call("")


def request_id(headers: Headers) -> str:
    """The client's X-Request-Id if it can be used, else a random one."""
    given = headers.get("x-request-id", "")
    return given if fits_header(given) else uuid.uuid4().hex


SESSION_HEADERS = ("x-session-id", "x-smg-routing-key")
"""The second is the name that SGLang's gateway has for it."""


def session(headers: Headers | None) -> str:
    """What a client's headers say that it belongs to, for requests that would like to stay with one replica; or nothing."""
    return next((value for name in SESSION_HEADERS if (value := (headers or {}).get(name))), "")


def fits_header(request_id: str) -> bool:
    return 0 < len(request_id) <= 256 and request_id.isascii() and request_id.isprintable()


class Calls:
    """ASGI middleware around everything: every answer says its request's id, those of the framework too. `observers` are told of
    each request once it is over."""

    def __init__(self, app: ASGIApp, observers: Iterable[Callable[[Call], None]] = ()):
        self._app = app
        self._observers = tuple(observers)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        call = Call(request_id(headers), scope["method"], headers=headers)
        _CALL.set(call)

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                call.status = message["status"]
                extra = [] if call.allowance is None else call.allowance.headers()
                message["headers"] = [*message.get("headers", []), (b"x-request-id", call.request_id.encode()), *extra]
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        finally:
            call.ended_at = time.perf_counter()
            for observe in self._observers:
                observe(call)
