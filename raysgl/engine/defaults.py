"""Engine limits that the config leaves open: what they are on this device, for this model. No torch, no Ray."""

from __future__ import annotations

import os
from dataclasses import dataclass

from raysgl.config import EngineConfig
from raysgl.engine.scheduler import SchedulerConfig

MAX_RUNNING = {"cuda": 256, "cpu": 64}
STEP_TOKENS = {"cuda": 8192, "cpu": 512}
QUEUED_PER_RUNNING = 4

TEXTS = 256
TEXT_STEP_TOKENS = {"cuda": 16384, "cpu": 512}
"""all-MiniLM-L6-v2 on a busy x86 core: 3,500 tokens/s in steps of 512 and of 1024, 3,300 in steps of 2048; a short step is a short wait."""
QUEUED_TEXTS = 16384
"""Of models that make vectors. A request may have 2,048 texts; one that waits is a few hundred bytes."""


@dataclass(frozen=True)
class EngineLimits:
    """What scheduler and runner must agree on.

    max_running: slots, so sequences that run at a time. max_queued: sequences that may wait before one is refused.
    step_tokens: tokens that one step computes at most; 0: prompts are not chunked.
    context_length: tokens of prompt and output together. cpu_threads: torch threads of one shard on cpu.
    group_prefixes: decode steps use cascade attention where rows share a prefix.
    """

    max_running: int
    max_queued: int
    step_tokens: int
    context_length: int
    cpu_threads: int
    group_prefixes: bool

    @property
    def largest_prefill(self) -> int:
        """The most tokens that one row computes in a step."""
        return min(self.step_tokens or self.context_length, self.context_length)


def resolve_defaults(config: EngineConfig, device: str, context_length: int) -> EngineLimits:
    """Fill in what the config leaves open. device: "cpu" or "cuda". context_length: the checkpoint's."""
    running = config.max_running_requests or MAX_RUNNING[device]
    queued, chunk = config.max_queued_requests, config.chunked_prefill_size
    return EngineLimits(
        max_running=running,
        max_queued=QUEUED_PER_RUNNING * running if queued is None else queued,
        step_tokens=max(0, STEP_TOKENS[device] if chunk is None else chunk),
        context_length=config.context_length or context_length,
        group_prefixes=device == "cuda" and not config.disable_radix_cache and not config.disable_cascade_attention,
        cpu_threads=config.cpu_threads or max(1, usable_cores() // config.tp_size),
    )


def resolve_text_defaults(config: EngineConfig, device: str, context_length: int) -> EngineLimits:
    """The same for a model that makes vectors: a step computes whole texts, `max_running` of them at most."""
    queued, tokens = config.max_queued_requests, config.chunked_prefill_size
    return EngineLimits(
        max_running=config.max_running_requests or TEXTS,
        max_queued=QUEUED_TEXTS if queued is None else queued,
        step_tokens=max(0, TEXT_STEP_TOKENS[device] if tokens is None else tokens),
        context_length=config.context_length or context_length,
        group_prefixes=False,
        cpu_threads=config.cpu_threads or usable_cores(),
    )


def scheduler_config(
    config: EngineConfig, limits: EngineLimits, num_pages: int, eos_token_ids: tuple[int, ...], vocab_size: int = 0
) -> SchedulerConfig:
    """What the scheduler of a replica with so many pages is told."""
    return SchedulerConfig(
        page_size=config.page_size,
        num_pages=num_pages,
        context_length=limits.context_length,
        max_running=limits.max_running,
        max_queued=limits.max_queued,
        step_tokens=limits.step_tokens,
        eos_token_ids=eos_token_ids,
        policy=config.schedule_policy,
        conservativeness=config.schedule_conservativeness,
        radix_cache=not config.disable_radix_cache,
        group_prefixes=limits.group_prefixes,
        max_queue_seconds=config.max_queue_seconds,
        vocab_size=vocab_size,
    )


def usable_cores() -> int:
    """Cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
