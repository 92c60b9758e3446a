"""Two ranks, or four, run the same plans and agree with one, also where rank 0 samples with noise and reports log probabilities."""

from __future__ import annotations

import socket

import pytest
import torch.multiprocessing as mp

from raysgl.sampling.params import SamplingParams
from tests.engine.hand import Hand, Seq

SAMPLED = SamplingParams(temperature=0.9, top_p=0.95, logprobs=True, top_logprobs=2, prompt_logprobs=1)


def run_plans(rank: int, size: int, port: int, settings: dict, device: str, answers, most_sent: int | None = None) -> None:
    import os

    os.environ["CUDA_VISIBLE_DEVICES"] = str(rank)  # as Ray does
    import numpy as np
    import torch

    from raysgl import distributed, models
    from raysgl.config import EngineConfig
    from raysgl.engine.runner import ModelRunner
    from raysgl.kernels import sent_sums, sum_ranks
    from raysgl.sampling.token_masks import TokenMasks

    if most_sent is not None:
        sum_ranks.MOST_SENT = sent_sums.PIECE = most_sent
    config = EngineConfig(
        tp_size=size, page_size=4, max_running_requests=4, cpu_threads=1, context_length=100, max_total_tokens=400, **settings
    )
    group = distributed.start(rank, size, torch.device(device), f"tcp://127.0.0.1:{port}", timeout_s=60)
    runner = ModelRunner(config, models.resolve(config.model_path), rank, group, device)
    hand = Hand(40, 4)
    a, b = Seq(list(range(3, 20)), 3), Seq([7, 8, 9, 10, 11], 0, SAMPLED, seed=5)
    results = [runner.launch(hand.plan(chunks=[(a, 9)])), runner.launch(hand.plan(chunks=[(a, 8), (b, 5)]))]
    results += [runner.launch(hand.plan([a])) for _ in range(3)]
    results += [runner.launch(hand.plan([b, a])) for _ in range(10)]
    bits = np.zeros((1, runner.vocab_size // 32), np.int32)
    bits[0, 1:3] = -1  # tokens 32 to 95, for the second row
    for _ in range(3):
        plan = hand.plan([b, a])
        plan.guided = True
        results.append(runner.launch(plan))
        if rank == 0:
            runner.sample(TokenMasks(np.array([1]), bits))
    tokens = [step.result().token_ids for step in results]
    last = runner._slots.last_token_N.tolist()
    prompt = [round(entry.logprob, 6) for entry in results[1].result().prompt_logprobs[1]] if rank == 0 else None
    graphs = runner._graphs is not None, runner._tp.peers is not None
    answers.put((rank, tokens if rank == 0 else None, (last[0], last[3]), prompt, runner.num_pages, graphs))
    group.close()


def answers_of(size: int, settings: dict, device: str = "cpu", most_sent: int | None = None) -> list[tuple]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    context = mp.get_context("spawn")
    answers = context.Queue()
    workers = [
        context.Process(target=run_plans, args=(rank, size, port, settings, device, answers, most_sent)) for rank in range(size)
    ]
    for worker in workers:
        worker.start()
    try:
        return sorted((answers.get(timeout=120) for _ in workers), key=lambda answer: answer[0])
    finally:
        for worker in workers:
            worker.join(20)
            worker.kill()


@pytest.mark.slow
@pytest.mark.parametrize("size", [2, 4], ids="{} ranks".format)
def test_several_ranks_give_what_one_gives(tiny_checkpoint, size):
    """The model has two key and value heads, so of four ranks two have the same one."""
    # float64: rounding cannot make another choice of a sum over ranks.
    settings = {"model_path": str(tiny_checkpoint("llama")), "dtype": "float64"}
    (alone,) = answers_of(1, settings)
    first, *others = answers_of(size, settings)
    assert first[1] == alone[1]
    assert all(32 <= guided < 96 for _, guided in first[1][-3:])
    assert {rank[2] for rank in (first, *others)} == {(first[1][-1][0], first[1][-1][1])}
    assert first[3] == alone[3] and len(first[3]) == 5
    assert {rank[4] for rank in (alone, first, *others)} == {4 * 25}


@pytest.mark.gpu
@pytest.mark.parametrize("size", [2, 4, 8], ids="{} ranks".format)
@pytest.mark.parametrize(
    ("dtype", "custom", "most_sent"),
    [
        ("float32", True, None),
        ("float16", True, None),
        ("float16", False, None),
        pytest.param("float16", True, 128, id="copy engines"),  # two rows of 64 in a piece, and in sums of any other kind
    ],
)
def test_several_gpus_give_what_one_gives(tiny_checkpoint, size, dtype, custom, most_sent):
    """float16: with CUDA graphs, and sums through shared memory or NCCL's in them."""
    import torch

    if torch.cuda.device_count() < size:
        pytest.skip(f"needs {size} GPUs")
    # Of these weights the second best token is far enough behind, in float64, for float16's rounding.
    folder = tiny_checkpoint("llama", initializer_range=0.22, num_attention_heads=8, intermediate_size=128)
    settings = {"model_path": str(folder), "dtype": dtype, "disable_custom_all_reduce": not custom}
    settings["disable_cuda_graph"] = most_sent is not None
    (alone,) = answers_of(1, settings, "cuda")
    first, *others = answers_of(size, settings, "cuda", most_sent)
    graphs_and_peers = (most_sent is None, custom) if dtype == "float16" else (False, False)
    assert {rank[5] for rank in (first, *others)} == {graphs_and_peers}
    assert {rank[2] for rank in (first, *others)} == {(first[1][-1][0], first[1][-1][1])}
    # What is drawn with noise may be another token after another rounding; the last row is greedy.
    assert [row[-1] for row in first[1][2:]] == [row[-1] for row in alone[1][2:]]
    assert first[3] == pytest.approx(alone[3], abs=1e-4 if dtype == "float32" else 3e-2)
