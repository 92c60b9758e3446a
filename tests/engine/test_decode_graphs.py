"""CUDA graphs and cascade attention change no token: the whole engine on a GPU against plain launches of torch attention."""

from __future__ import annotations

import random

import pytest

from raysgl import distributed, models
from raysgl.cache.hashing import page_hashes
from raysgl.config import EngineConfig
from raysgl.engine.loop import EngineLoop
from raysgl.engine.runner import ModelRunner
from raysgl.engine.scheduler import Scheduler, SchedulerConfig
from raysgl.messages import Submit, pack_ids
from raysgl.sampling.params import SamplingParams
from tests.kernels.test_backends import skipping_what_is_unsupported

PAGE = 16


def outputs_of(
    folder: str, group_prefixes: bool, dtype: str = "float32", **settings
) -> tuple[dict[int, list[int]], ModelRunner]:
    """Greedy and seeded outputs of 20 requests, most of them with a common prefix of 320 tokens."""
    config = EngineConfig(
        model_path=folder, dtype=dtype, page_size=PAGE, max_total_tokens=8192, max_running_requests=20, **settings
    )
    runner = ModelRunner(config, models.resolve(folder), 0, distributed.single(), "cuda:0")
    scheduler = Scheduler(
        SchedulerConfig(PAGE, runner.num_pages, runner.context_length, 20, 100, 512, group_prefixes=group_prefixes)
    )
    draw = random.Random(1)
    common = [draw.randrange(3, 256) for _ in range(320)]
    inbox = []
    for uid in range(20):
        prompt = (common if uid % 5 else []) + [draw.randrange(3, 256) for _ in range(draw.randrange(1, 40))]
        sampling = SamplingParams(max_new_tokens=24 + uid, temperature=0.0 if uid % 3 else 0.7, seed=uid, ignore_eos=True)
        inbox.append(Submit(uid, f"r{uid}", "i", pack_ids(prompt), sampling, page_hashes(prompt, PAGE)))
    outputs: dict[int, list[int]] = {uid: [] for uid in range(20)}

    def receive(timeout: float) -> list[Submit]:
        messages, inbox[:] = list(inbox), []
        return messages

    def emit(news) -> None:
        for output in news["i"]:
            outputs[output.uid] += output.token_ids

    loop = EngineLoop(scheduler, runner, receive, emit, publish=lambda events, load: None)
    loop.run_once()
    while not loop.idle:
        loop.run_once()
        scheduler.check()
    return outputs, runner


@pytest.mark.gpu
def test_graphs_and_cascade_change_no_token(tiny_checkpoint):
    folder = str(tiny_checkpoint("llama", head_dim=64))
    plain, _ = outputs_of(folder, False, attention_backend="torch")
    graphs, runner = outputs_of(folder, False, attention_backend="triton")
    assert runner._graphs is not None and runner._mixed is not None
    cascade, runner = outputs_of(folder, True, attention_backend="triton")
    assert graphs == plain
    assert cascade == plain
    assert runner.cascade_steps > 5, "prefixes were shared"


@pytest.mark.gpu
def test_graphs_of_a_backend_that_plans_on_the_host(tiny_checkpoint):
    folder = str(tiny_checkpoint("llama", head_dim=128))
    plain, _ = outputs_of(folder, False, "bfloat16", attention_backend="triton")
    with skipping_what_is_unsupported():
        graphs, runner = outputs_of(
            folder, False, "bfloat16", prefill_attention_backend="triton", decode_attention_backend="flashinfer"
        )
    assert runner._graphs is not None and runner._mixed is not None
    # Rounded differently, rows part ways at some near tie; with wrong keys they would at once, in each of 256 tokens.
    same = [sum(a == b for a, b in zip(plain[uid], graphs[uid], strict=True)) / len(plain[uid]) for uid in plain]
    assert sum(same) / len(same) > 0.5
