"""Scheduler, loop and runner together on a real (tiny) model: a pool far too small for the load changes no token.

In float64, where the batch a row is computed in cannot move a choice by rounding.
"""

from __future__ import annotations

import random

import pytest

from raysgl import distributed, models
from raysgl.cache.hashing import page_hashes
from raysgl.config import EngineConfig
from raysgl.engine.background import BackgroundRunner
from raysgl.engine.loop import EngineLoop
from raysgl.engine.runner import ModelRunner
from raysgl.engine.scheduler import Scheduler, SchedulerConfig
from raysgl.messages import Submit, pack_ids
from raysgl.sampling.params import SamplingParams

PAGE = 4
KINDS = [
    {"temperature": 0.0},
    {"temperature": 0.8, "top_p": 0.9},
    {"temperature": 1.3, "repetition_penalty": 1.2, "frequency_penalty": 0.3},
    {"temperature": 0.7, "top_k": 20, "min_new_tokens": 30, "logit_bias": {2: 4.0}},
]


def serve(folder: str, pool_tokens: int, chunk: int, count: int = 64) -> tuple[dict[int, list[int]], Scheduler]:
    """Output tokens of `count` requests that all come at once, half of them with a common prefix."""
    config = EngineConfig(
        model_path=folder, dtype="float64", page_size=PAGE, max_total_tokens=pool_tokens, max_running_requests=24, cpu_threads=1
    )
    runner = ModelRunner(config, models.resolve(folder), 0, distributed.single(), "cpu")
    scheduler = Scheduler(
        SchedulerConfig(
            page_size=PAGE,
            num_pages=runner.num_pages,
            context_length=runner.context_length,
            max_running=runner.max_running,
            max_queued=100,
            step_tokens=chunk,
            eos_token_ids=(2,),
            conservativeness=0.2,  # admits too many, so that some must be retracted
        )
    )
    source = random.Random(0)
    common = [source.randrange(3, 256) for _ in range(21)]
    inbox = []
    for uid in range(count):
        prompt = (common if uid % 2 else []) + [source.randrange(3, 256) for _ in range(source.randrange(1, 15))]
        sampling = SamplingParams(max_new_tokens=40, seed=uid, **KINDS[uid % len(KINDS)])
        inbox.append(Submit(uid, f"r{uid}", "i", pack_ids(prompt), sampling, page_hashes(prompt, PAGE)))
    outputs: dict[int, list[int]] = {uid: [] for uid in range(count)}

    def receive(timeout: float) -> list[Submit]:
        messages = list(inbox)
        inbox.clear()
        return messages

    def emit(news) -> None:
        for output in news["i"]:
            outputs[output.uid] += output.token_ids

    behind = BackgroundRunner(lambda: runner)
    loop = EngineLoop(scheduler, behind, receive, emit, publish=lambda events, load: None)
    loop.run_once()
    while not loop.idle:
        loop.run_once()
        scheduler.check()
    behind.close()
    return outputs, scheduler


@pytest.mark.slow
def test_a_pool_too_small_changes_no_token(tiny_checkpoint):
    folder = str(tiny_checkpoint("llama"))
    expected, roomy = serve(folder, 4096, 64)
    found, tight = serve(folder, 6 * 56, 32)  # a request has 56 tokens at most
    assert roomy.load().retractions == 0 and tight.load().retractions > 0
    assert found == expected
    assert tight.pool.available + tight.tree.evictable_pages == tight.config.num_pages
    assert {len(tokens) for tokens in expected.values()} - {40}, "no request ended by itself: the test shows less than it could"
