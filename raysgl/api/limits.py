"""What a key may use: requests and tokens a minute (token buckets that fill steadily), and requests at a time.

The buckets are an ingress's own. Where there are several ingresses each grants its equal share, so that together they grant the
limit without asking each other; a client that keeps to one connection gets one share.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from raysgl.api.errors import ApiError
from raysgl.api.keys import Key

MINUTE = 60.0
UNITS = ("requests", "tokens")


class Bucket:
    """`limit` units a minute; holds a minute's worth. May be in debt after something cost more than was known before."""

    def __init__(self, limit: float, now: float):
        self.limit = self._level = limit
        self._at = now

    def level(self, now: float) -> float:
        self._level = min(self.limit, self._level + (now - self._at) * self.limit / MINUTE)
        self._at = now
        return self._level

    def take(self, units: float, now: float) -> None:
        self._level = self.level(now) - units

    def wait(self, units: float, now: float) -> float:
        """Seconds until so many units are there."""
        return max(0.0, (min(units, self.limit) - self.level(now)) * MINUTE / self.limit)

    def shift(self, limit: float, now: float) -> None:
        """Another limit from now on; what was used stays used."""
        self._level = limit - (self.limit - self.level(now))
        self.limit = limit


class Allowance:
    """One key's use of this ingress. `share`: the part of each limit that this ingress grants."""

    def __init__(self, key: Key, share: float, clock: Callable[[], float]):
        self.key = key
        self.open = 0
        self._share, self._clock = share, clock
        self.requests = self._bucket(key.requests_per_minute, None)
        self.tokens = self._bucket(key.tokens_per_minute, None)

    def update(self, key: Key) -> None:
        """The key file has other limits for it now."""
        if key != self.key:
            self.key = key
            self.requests = self._bucket(key.requests_per_minute, self.requests)
            self.tokens = self._bucket(key.tokens_per_minute, self.tokens)

    def _bucket(self, limit: int | None, before: Bucket | None) -> Bucket | None:
        if limit is None:
            return None
        mine = max(1.0, limit * self._share)
        if before is None:
            return Bucket(mine, self._clock())
        before.shift(mine, self._clock())
        return before

    @contextmanager
    def enter(self) -> Iterator[None]:
        """Around one request. ApiError 429."""
        key, now = self.key, self._clock()
        if key.max_concurrent is not None:
            most = max(1, round(key.max_concurrent * self._share))
            if self.open >= most:
                raise _limited(f"{key.name} has {self.open} requests in progress, and may have {most} at a time", 1.0)
        if self.tokens is not None and self.tokens.level(now) <= 0:
            raise _limited(self._may("use", self.tokens, key.tokens_per_minute, "tokens"), self.tokens.wait(1, now))
        if self.requests is not None:
            if wait := self.requests.wait(1, now):
                raise _limited(self._may("send", self.requests, key.requests_per_minute, "requests"), wait)
            self.requests.take(1, now)
        self.open += 1
        try:
            yield
        finally:
            self.open -= 1

    def spend_prompt(self, tokens: int) -> None:
        """ApiError 429 if the prompt is more than what is left. One that is larger than this ingress's share of the limit, but not
        than the limit, needs the whole share, and leads into debt."""
        limit = self.key.tokens_per_minute
        if self.tokens is None or limit is None:
            return
        now = self._clock()
        wait = self.tokens.wait(tokens, now)
        if wait or tokens > limit:
            message = f"{self._may('use', self.tokens, limit, 'tokens')}, and the prompt has {tokens}"
            raise _limited(message, wait if tokens <= limit else None)
        self.tokens.take(tokens, now)

    def _may(self, verb: str, mine: Bucket, limit: int | None, unit: str) -> str:
        share = f" ({mine.limit:.0f} through each ingress)" if mine.limit != limit else ""
        return f"{self.key.name} may {verb} {limit} {unit} a minute{share}"

    def spend_answer(self, tokens: int) -> None:
        """What was generated; it may lead into debt."""
        if self.tokens is not None:
            self.tokens.take(tokens, self._clock())

    def headers(self) -> list[tuple[bytes, bytes]]:
        """OpenAI's x-ratelimit headers."""
        now, result = self._clock(), []
        for what, bucket in zip(UNITS, (self.requests, self.tokens)):
            if bucket is not None:
                values = (
                    ("limit", f"{bucket.limit:.0f}"),
                    ("remaining", f"{max(0, int(bucket.level(now)))}"),
                    ("reset", duration(bucket.wait(bucket.limit, now))),
                )
                result += [(f"x-ratelimit-{name}-{what}".encode(), value.encode()) for name, value in values]
        return result


class Limits:
    """The allowances of all keys, by name: they outlast a reading of the key file."""

    def __init__(self, ingresses: int, clock: Callable[[], float] = time.monotonic):
        self._share, self._clock = 1 / ingresses, clock
        self._allowances: dict[str, Allowance] = {}

    def of(self, key: Key) -> Allowance:
        allowance = self._allowances.get(key.name)
        if allowance is None:
            allowance = self._allowances[key.name] = Allowance(key, self._share, self._clock)
        allowance.update(key)
        return allowance


def duration(seconds: float) -> str:
    """As in OpenAI's headers: 120ms, 7.66s, 6m0s."""
    if seconds < 1:
        return f"{round(seconds * 1000)}ms"
    if seconds < MINUTE:
        return f"{seconds:.2f}".rstrip("0").rstrip(".") + "s"
    return f"{int(seconds // MINUTE)}m{int(seconds % MINUTE)}s"


def _limited(message: str, retry_after: float | None) -> ApiError:
    return ApiError(429, message, type="rate_limit_error", code="rate_limit_exceeded", retry_after=retry_after)
