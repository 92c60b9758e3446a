"""A request, its stay at a replica, and who hears of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from raysgl.bench.routing.prefixes import Edge

if TYPE_CHECKING:
    from raysgl.bench.routing.replica import Replica


@dataclass(slots=True, eq=False)
class Request:
    """arrival: seconds; if `after` is the index of another request, at the earliest `delay` after that one's end.

    hashes: pages of the prompt. path: edges of prompt and output. match_pages: full pages of the prompt without its last token,
    which always has to be computed. new_tokens: of the prompt, those that no request before it in the workload has.
    """

    index: int
    arrival: float
    num_tokens: int
    output_len: int
    hashes: list[int]
    session: str = ""
    after: int = -1
    delay: float = 0.0
    path: list[Edge] = field(default_factory=list)
    match_pages: int = 0
    new_tokens: int = 0


@dataclass(slots=True, eq=False)
class Sequence:
    """A request at a replica. goal: tokens to prefill. shared: pages in the cache, locked. own: pages besides.

    queued: tokens of it in `Replica.queued_tokens`: all while it waits, as the engine counts them, then those not computed. ends_at: `Replica.decoded` at its end.
    """

    request: Request
    goal: int
    queued: int
    computed: int = 0
    generated: int = 0
    shared: int = 0
    own: int = 0
    phase: int = 0
    ends_at: int = 0
    first_token: float = -1.0
    hit_tokens: int = -1
    computing: list[Edge] = field(default_factory=list)


class Listener(Protocol):
    """Who is told what happens at a replica."""

    def wake(self, replica: Replica, at: float, version: int) -> None:
        """Call `replica.wake(at, version)` at that time."""

    def first_token(self, replica: Replica, sequence: Sequence, now: float) -> None: ...

    def finished(self, replica: Replica, sequence: Sequence, now: float) -> None: ...
