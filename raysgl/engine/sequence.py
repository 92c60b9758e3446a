"""One sampled continuation of a request, as the scheduler keeps it."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING

from raysgl.cache.radix_tree import Node
from raysgl.messages import TokenLogprob
from raysgl.sampling.params import SamplingParams

if TYPE_CHECKING:
    from raysgl.engine.guides import Guide
    from raysgl.engine.think_budget import ThinkBudget


class Status(Enum):
    COMPILING = "compiling"
    """Its grammar is not there yet: in no queue, holds nothing."""
    WAITING = "waiting"
    """In the queue: holds no pages and no slot."""
    RUNNING = "running"
    FINISHED = "finished"


@dataclass(slots=True, eq=False)
class Sequence:
    """What a client asked (written once), and how far it is (written by `Scheduler` alone).

    tokens: prompt and the output tokens known so far; the first `num_prompt` are the prompt.
    num_pending: tokens that launched steps will sample, not known yet.
    num_computed: tokens whose keys and values are in the cache once all launched steps have run.
    decoding: a launched step of this admission samples, so the last token is on the device.

    Its pages, in order, and who owns them:

        |  pages[:num_shared]         |  pages[num_shared:]                   |
        |  in the radix tree, locked  |  this sequence's own                  |
        |<------ computed ------>|<-- computed or to be computed ---- free -->|
    """

    uid: int
    ingress: str
    request_id: str
    sampling: SamplingParams
    seed: int
    stop_ids: frozenset[int]
    tokens: list[int]
    num_prompt: int
    max_tokens: int
    page_hashes: list[int]
    extra_key: str = ""
    priority: int = 0
    accepted: bool = False
    deadline: float = math.inf
    """By the same clock as `added_at`."""
    arrival: int = 0
    turn: float = 0.0
    """Its place in the queue; see `raysgl.engine.waiting.turn_of`."""
    added_at: float = field(default_factory=time.monotonic)
    started_at: float = 0.0
    """When it was first admitted; by the same clock."""

    status: Status = Status.WAITING
    slot: int = -1
    pages: list[int] = field(default_factory=list)
    num_shared: int = 0
    node: Node | None = None
    num_computed: int = 0
    num_pending: int = 0
    decoding: bool = False
    table_updates: list[tuple[int, int]] = field(default_factory=list)
    computing: list[int] = field(default_factory=list)
    overtaken: int = 0
    cached_tokens: int | None = None
    announced: bool = False
    retractions: int = 0
    prompt_logprobs: list[TokenLogprob] | None = None
    guide: Guide | None = None
    """Of a sequence with a constraint; written by `Guides` alone."""
    budget: ThinkBudget | None = None

    @property
    def logprobs_start(self) -> int:
        """The first prompt token that log probabilities are reported of, of which nothing is known."""
        return min(self.sampling.prompt_logprobs_start, self.num_prompt - 1)

    @property
    def wants_prompt_logprobs(self) -> bool:
        """Whether some of those that were asked for are not known yet."""
        known = len(self.prompt_logprobs or ())
        return self.sampling.prompt_logprobs is not None and known < self.num_prompt - self.logprobs_start

    @property
    def num_output(self) -> int:
        return len(self.tokens) - self.num_prompt

    @property
    def length(self) -> int:
        """Tokens, with those not known yet."""
        return len(self.tokens) + self.num_pending

    @property
    def remaining_prompt(self) -> int:
        """Known tokens that no launched step has computed, unless it decodes."""
        return 0 if self.decoding else len(self.tokens) - self.num_computed

    @property
    def key(self) -> tuple[str, int]:
        return (self.ingress, self.uid)
