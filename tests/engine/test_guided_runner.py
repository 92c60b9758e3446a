"""Guided sequences in the whole engine with a (tiny) model: their texts fit, and their neighbours say what they say alone."""

from __future__ import annotations

import random
import re

import pytest

from raysgl import distributed, models
from raysgl.cache.hashing import page_hashes
from raysgl.config import EngineConfig
from raysgl.engine.background import BackgroundRunner
from raysgl.engine.loop import EngineLoop
from raysgl.engine.runner import ModelRunner
from raysgl.engine.scheduler import Scheduler, SchedulerConfig
from raysgl.grammar.compiler import GrammarCompiler
from raysgl.grammar.vocabulary import Vocabulary
from raysgl.messages import Submit, pack_ids
from raysgl.sampling.constraint import Constraint
from raysgl.sampling.params import SamplingParams

PAGE, EOS = 4, 2
BYTES = Vocabulary(256, [bytes([byte]) for byte in range(256)], [EOS], [EOS])
PATTERN = r"[a-z]{4,12}(-[0-9]+){2}"
GUIDED = [
    {"temperature": 0.0},
    {"temperature": 1.2, "top_p": 0.9},
    {"temperature": 0.8, "frequency_penalty": 0.5, "repetition_penalty": 1.1, "logprobs": True, "top_logprobs": 2},
    {"temperature": 1.0, "min_new_tokens": 15, "logit_bias": {97: 3.0}},
]


@pytest.fixture(scope="module")
def grammars():
    made = GrammarCompiler(BYTES, "auto", 20.0, 10, 1 << 28)
    yield made
    made.close()


def serve(folder, grammars, device="cpu", pool_tokens=4096, overlap=True, behind=False, only_free=False):
    """uid -> (tokens, finish). Odd sequences are guided; `behind`: the runner has a thread, as on a CPU."""
    config = EngineConfig(
        model_path=folder,
        dtype="float64" if device == "cpu" else "bfloat16",
        page_size=PAGE,
        max_total_tokens=pool_tokens,
        max_running_requests=12,
        cpu_threads=1,
    )
    runner = ModelRunner(config, models.resolve(folder), 0, distributed.single(), device)
    if behind:
        runner = BackgroundRunner(lambda made=runner: made)
    scheduler = Scheduler(
        SchedulerConfig(
            page_size=PAGE,
            num_pages=runner.num_pages,
            context_length=200,
            max_running=12,
            max_queued=100,
            step_tokens=32,
            eos_token_ids=(EOS,),
            conservativeness=0.2,
        ),
        grammars=grammars,
    )
    source, inbox, outputs = random.Random(0), [], {}
    for uid in range(24):
        prompt = [source.randrange(3, 256) for _ in range(source.randrange(1, 15))]
        kind = GUIDED[uid // 2 % len(GUIDED)] | {"seed": uid, "max_new_tokens": 40}
        if uid % 2:
            kind["constraint"] = Constraint("regex", PATTERN)
        if uid % 2 == 0 or not only_free:
            inbox.append(Submit(uid, f"r{uid}", "i", pack_ids(prompt), SamplingParams(**kind), page_hashes(prompt, PAGE)))
            outputs[uid] = [[], None]

    def receive(timeout):
        messages = list(inbox)
        inbox.clear()
        return messages

    def emit(news):
        for output in news["i"]:
            outputs[output.uid][0] += output.token_ids
            outputs[output.uid][1] = output.finish

    loop = EngineLoop(scheduler, runner, receive, emit, publish=lambda events, load: None, overlap=overlap)
    loop.run_once()
    while not loop.idle:
        loop.run_once()
        scheduler.check()
    if behind:
        runner.close()
    return outputs, scheduler


def check_texts(outputs):
    ended = 0
    for uid, (tokens, finish) in outputs.items():
        if uid % 2 == 0:
            continue
        text = bytes(tokens[:-1] if finish.matched == EOS else tokens).decode()
        if finish.reason == "stop":
            ended += 1
            assert re.fullmatch(PATTERN, text), text
        else:
            assert finish.reason == "length"
            assert re.fullmatch(r"[a-z]{1,12}(-[0-9]*){0,2}", text), text
    assert ended


@pytest.mark.slow
def test_texts_fit_and_neighbours_are_not_changed(tiny_checkpoint, grammars):
    folder = str(tiny_checkpoint("llama"))
    expected, _ = serve(folder, grammars, overlap=False)
    check_texts(expected)
    alone, _ = serve(folder, grammars, only_free=True)
    assert alone == {uid: output for uid, output in expected.items() if uid % 2 == 0}
    assert serve(folder, grammars)[0] == expected
    assert serve(folder, grammars, behind=True)[0] == expected
    tight, scheduler = serve(folder, grammars, pool_tokens=320)
    assert scheduler.stats.retractions > 0
    assert {uid: tokens for uid, (tokens, _) in tight.items()} == {uid: tokens for uid, (tokens, _) in expected.items()}


@pytest.mark.gpu
def test_texts_fit_on_a_gpu(tiny_checkpoint, grammars):
    """With CUDA graphs, and a step ahead."""
    outputs, _ = serve(str(tiny_checkpoint("llama")), grammars, device="cuda")
    check_texts(outputs)
