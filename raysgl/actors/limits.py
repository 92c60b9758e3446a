"""Engine limits that the config leaves open: what they are on this device, for this model. No Ray, no torch."""

from __future__ import annotations

from raysgl.config import EngineConfig
from raysgl.engine.scheduler import SchedulerConfig

MAX_RUNNING = {"cuda": 256, "cpu": 64}
STEP_TOKENS = {"cuda": 8192, "cpu": 512}
QUEUED_PER_RUNNING = 4


def max_running(config: EngineConfig, device: str) -> int:
    """Sequences that run at a time."""
    return config.max_running_requests or MAX_RUNNING[device]


def scheduler_config(
    config: EngineConfig, device: str, num_pages: int, context_length: int, eos_token_ids: tuple[int, ...]
) -> SchedulerConfig:
    """num_pages: what the runner's pool holds. context_length: the model's, unless the config sets its own."""
    running = max_running(config, device)
    queued = config.max_queued_requests
    step_tokens = STEP_TOKENS[device] if config.chunked_prefill_size is None else config.chunked_prefill_size
    return SchedulerConfig(
        page_size=config.page_size,
        num_pages=num_pages,
        context_length=context_length,
        max_running=running,
        max_queued=QUEUED_PER_RUNNING * running if queued is None else queued,
        step_tokens=max(0, step_tokens),
        eos_token_ids=eos_token_ids,
        policy=config.schedule_policy,
        conservativeness=config.schedule_conservativeness,
        radix_cache=not config.disable_radix_cache,
    )
