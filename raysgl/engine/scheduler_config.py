"""What a scheduler is told about its replica. No torch, no Ray."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class SchedulerConfig:
    """`step_tokens` is the most that one step computes; 0 means prompts are never chunked.

    `eos_token_ids` end a sequence unless it ignores them. `group_prefixes`: tell the runner which rows share a prefix.
    `max_queue_seconds`: requests that would wait longer are refused. `vocab_size`: of the model; for the masks of `think_budget`.
    """

    page_size: int
    num_pages: int
    context_length: int
    max_running: int
    max_queued: int
    step_tokens: int
    eos_token_ids: tuple[int, ...] = ()
    policy: str = "fcfs"
    conservativeness: float = 1.0
    radix_cache: bool = True
    group_prefixes: bool = False
    max_queue_seconds: float = math.inf
    vocab_size: int = 0
