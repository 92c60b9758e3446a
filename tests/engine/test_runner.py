"""The runner, driven by plans made by hand, gives the tokens that transformers gives."""

from __future__ import annotations

import random
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from raysgl import distributed, models
from raysgl.config import EngineConfig
from raysgl.engine.runner import ModelRunner
from raysgl.messages import TokenLogprob
from raysgl.models import ModelError
from raysgl.sampling.params import SamplingParams
from tests.engine.hand import GREEDY, Hand, Seq

PAGE = 4
PAGES = 200


def make_runner(folder, device="cpu", **settings) -> ModelRunner:
    settings = {"page_size": PAGE, "max_total_tokens": PAGES * PAGE, "max_running_requests": 8, "cpu_threads": 1, **settings}
    config = EngineConfig(model_path=str(folder), **settings)
    return ModelRunner(config, models.resolve(str(folder)), 0, distributed.single(), device)


@pytest.fixture(scope="module")
def folder(tiny_checkpoint):
    return tiny_checkpoint("llama")


@pytest.fixture(scope="module")
def reference(folder):
    """f(prompt, count) -> `count` greedy tokens by transformers."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()

    def generate(prompt: list[int], count: int) -> list[int]:
        ids = torch.tensor([prompt])
        options = {"do_sample": False, "max_new_tokens": count, "min_new_tokens": count, "pad_token_id": 0}
        model.generation_config.eos_token_id = None
        return model.generate(ids, attention_mask=torch.ones_like(ids), **options)[0, len(prompt) :].tolist()

    generate.model = model
    return generate


@pytest.fixture(scope="module")
def runner(folder):
    return make_runner(folder)


def prompts(*lengths: int, seed: int = 0) -> list[list[int]]:
    source = random.Random(seed)
    return [[source.randrange(3, 256) for _ in range(length)] for length in lengths]


def run(runner: ModelRunner, hand: Hand, decodes: list[Seq] = (), chunks: list[tuple[Seq, int]] = ()) -> list[int]:
    """One step; what it samples is known to its sequences afterwards."""
    plan = hand.plan(decodes, chunks)
    tokens = runner.launch(plan).result().token_ids
    samplers = list(decodes) + [seq for seq, _ in chunks if seq.computed == len(seq.tokens)]
    assert len(samplers) == len(tokens)
    for seq, token in zip(samplers, tokens):
        seq.tokens.append(token)
    return tokens


def test_prefill_and_decode(runner, reference):
    """Prompts in one step, then decoding together; lengths on both sides of page boundaries."""
    hand = Hand(PAGES, PAGE)
    given = prompts(1, 3, 4, 5, 17)
    seqs = [Seq(list(prompt), slot) for slot, prompt in enumerate(given)]
    run(runner, hand, chunks=[(seq, len(seq.tokens)) for seq in seqs])
    for _ in range(20):
        run(runner, hand, decodes=seqs)
    for prompt, seq in zip(given, seqs):
        assert seq.tokens[len(prompt) :] == reference(prompt, 21)


def test_chunks_beside_decodes_and_slots_used_again(runner, reference):
    """A prompt in chunks while others decode; then a sequence ends and its slot and pages serve another."""
    hand = Hand(PAGES, PAGE)
    first, second, third = prompts(9, 30, 11, seed=1)
    a, b = Seq(list(first), 5), Seq(list(second), 2)
    run(runner, hand, chunks=[(a, 9)])
    run(runner, hand, [a], [(b, 7)])
    run(runner, hand, [a], [(b, 1)])
    run(runner, hand, [a], [(b, 13)])
    run(runner, hand, [a], [(b, 9)])
    for _ in range(5):
        run(runner, hand, [b, a])
    assert a.tokens[9:] == reference(first, 10)
    hand.release(a)
    c = Seq(list(third), 5)
    run(runner, hand, [b], [(c, 6)])
    run(runner, hand, [b], [(c, 5)])
    for _ in range(6):
        run(runner, hand, [c, b])
    assert b.tokens[30:] == reference(second, 14)
    assert c.tokens[11:] == reference(third, 7)


def test_a_retracted_sequence_goes_on_where_it_was(runner):
    """Seeded sampling with every kind of memory: computed again in another slot, the text is the same."""
    sampling = SamplingParams(temperature=1.2, top_p=0.9, repetition_penalty=1.2, min_new_tokens=9)
    (prompt,) = prompts(6, seed=2)
    texts = []
    for interrupted in (False, True):
        hand = Hand(PAGES, PAGE)
        seq = Seq(list(prompt), 1, sampling, seed=42, stop_ids=(1, 2))
        run(runner, hand, chunks=[(seq, 6)])
        for _ in range(5):
            run(runner, hand, [seq])
        if interrupted:
            hand.release(seq)
            seq.slot = 7
            run(runner, hand, chunks=[(seq, 4)])
            run(runner, hand, chunks=[(seq, 8)])
        else:
            run(runner, hand, [seq])
        for _ in range(6):
            run(runner, hand, [seq])
        texts.append(seq.tokens)
    assert texts[0] == texts[1]


def test_the_next_step_may_be_launched_before_the_last_is_read(runner, reference):
    hand = Hand(PAGES, PAGE)
    (prompt,) = prompts(10, seed=3)
    seq = Seq(list(prompt), 0)
    found = []
    before = runner.launch(hand.plan(chunks=[(seq, 10)]))
    for _ in range(12):
        after = runner.launch(hand.plan([seq]))
        assert before.wait(10.0)
        found += before.result().token_ids
        before = after
    assert found == reference(prompt, 12)


def test_prompt_log_probabilities(runner, reference, monkeypatch):
    """Of two of three rows, in pieces that do not end where rows do; and the sampled tokens' own beside them."""
    monkeypatch.setattr("raysgl.engine.runner.PROMPT_LOGITS_BYTES", 4 * 256 * 5)
    hand = Hand(PAGES, PAGE)
    given = prompts(8, 5, 12, seed=4)
    kinds = [
        SamplingParams(temperature=0.0, prompt_logprobs=2, logprobs=True, top_logprobs=1),
        GREEDY,
        SamplingParams(temperature=0.0, prompt_logprobs=0, token_ids_logprob=(7, 200)),
    ]
    seqs = [Seq(list(prompt), slot, kind) for slot, (prompt, kind) in enumerate(zip(given, kinds))]
    first = runner.launch(hand.plan(chunks=[(seqs[0], 5), (seqs[1], 5), (seqs[2], 12)])).result()
    second = runner.launch(hand.plan(chunks=[(seqs[0], 3)])).result()
    expected = {}
    for index in (0, 2):
        with torch.inference_mode():
            expected[index] = reference.model(torch.tensor([given[index]])).logits[0].log_softmax(-1)
    assert set(first.prompt_logprobs) == {0, 2}
    whole = first.prompt_logprobs[0] + second.prompt_logprobs[0]
    assert len(whole) == 8
    for position in range(7):
        check_entry(whole[position], given[0][position + 1], expected[0][position], 2)
        assert whole[position].asked == []
        assert whole[position].rank == 1 + (expected[0][position] > expected[0][position][given[0][position + 1]]).sum()
    assert len(first.prompt_logprobs[2]) == 12
    for position in range(11):
        check_entry(first.prompt_logprobs[2][position], given[2][position + 1], expected[2][position], 0)
        assert first.prompt_logprobs[2][position].asked == pytest.approx(expected[2][position][[7, 200]].tolist(), abs=1e-4)
    assert first.logprobs is None
    check_entry(second.logprobs[0], second.token_ids[0], expected[0][7], 1)


def check_entry(entry: TokenLogprob, token: int, logprobs_V: torch.Tensor, alternatives: int) -> None:
    assert entry.token_id == token
    assert entry.logprob == pytest.approx(logprobs_V[token].item(), abs=1e-4)
    best = logprobs_V.topk(alternatives)
    assert [token for token, _ in entry.top] == best.indices.tolist()
    assert [value for _, value in entry.top] == pytest.approx(best.values.tolist(), abs=1e-4)


def test_a_step_without_samples(runner):
    hand = Hand(PAGES, PAGE)
    seq = Seq(prompts(9, seed=5)[0], 0)
    result = runner.launch(hand.plan(chunks=[(seq, 4)])).result()
    assert result.token_ids == [] and result.logprobs is None and result.prompt_logprobs is None


def test_the_padding_page_stays_finite_and_unused(runner):
    hand = Hand(PAGES, PAGE)
    seqs = [Seq(prompt, slot) for slot, prompt in enumerate(prompts(40, 2, seed=6))]
    run(runner, hand, chunks=[(seq, len(seq.tokens)) for seq in seqs])
    run(runner, hand, seqs)
    table = runner._slots.page_table_NW
    assert table[1].tolist()[:2] == [seqs[1].pages[0], 0]
    assert runner._cache.data.isfinite().all()


def test_what_a_runner_says_of_itself(runner):
    assert (runner.num_pages, runner.page_size, runner.context_length) == (PAGES, PAGE, 512)
    assert (runner.vocab_size, runner.max_running, runner.device_name) == (256, 8, "cpu")
    assert runner.memory.kv_tokens == PAGES * PAGE
    # Two layers, keys and values, 2 heads of 16, float32; and one page more.
    assert runner.memory.kv_cache == (PAGES + 1) * PAGE * 2 * 2 * 2 * 16 * 4
    assert runner.memory.weights == sum(p.numel() * 4 for p in runner._model.parameters()) + 8 * 4


def test_progress_is_told(folder):
    said = []
    config = EngineConfig(model_path=str(folder), page_size=PAGE, max_total_tokens=64, cpu_threads=1)
    ModelRunner(
        config, models.resolve(str(folder)), 0, distributed.single(), "cpu", lambda done, what: said.append((done, what))
    )
    assert (1.0, "loading weights") in said
    assert [what for _, what in said[-2:]] == ["allocating the KV cache", "warming up"]


def test_a_pool_that_cannot_fit_is_refused(folder):
    with pytest.raises(ModelError, match="max_total_tokens is 1000000000000, which takes .* set at most"):
        make_runner(folder, max_total_tokens=10**12)


def test_the_shortest_context(folder):
    runner = make_runner(folder, context_length=1, max_total_tokens=8)
    hand = Hand(2, PAGE)
    assert len(runner.launch(hand.plan(chunks=[(Seq([5], 0), 1)])).result().token_ids) == 1


def test_a_cache_of_8_bits_takes_a_quarter_and_hardly_changes_the_model(folder, runner, tmp_path):
    """Log probabilities of a prompt, computed in chunks so that most keys are read from the cache."""
    scaled = shutil.copytree(folder, tmp_path / "model")
    tensors = load_file(scaled / "model.safetensors")
    tensors |= {f"model.layers.{n}.self_attn.{part}_scale": torch.tensor(0.01) for n in (0, 1) for part in "kv"}
    save_file(tensors, scaled / "model.safetensors")
    small = make_runner(scaled, kv_cache_dtype="fp8_e4m3")
    assert small.memory.kv_cache == runner.memory.kv_cache // 4
    assert small._cache.scales.unique().tolist() == pytest.approx([0.01])
    found = []
    for each in (runner, small):
        hand = Hand(PAGES, PAGE)
        seq = Seq(prompts(60, seed=4)[0], 0, SamplingParams(temperature=0.0, prompt_logprobs=0))
        logprobs = []
        for _ in range(10):
            result = each.launch(hand.plan(chunks=[(seq, 6)])).result()
            logprobs += [entry.logprob for entry in result.prompt_logprobs[0]]
        found.append(torch.tensor(logprobs[:59]))
    exact, near = found
    assert 0 < (near - exact).abs().max() < 0.1 * exact.std()


@pytest.mark.gpu
def test_cuda_gives_the_same_tokens(folder, reference):
    """With the next step launched before the last is read, sizes measured, and a stream of its own."""
    runner = make_runner(folder, device="cuda", dtype="float32", max_total_tokens=None, max_running_requests=4)
    assert runner.memory.activations > 0
    assert runner.num_pages == 4 * 512 // PAGE
    hand = Hand(PAGES, PAGE)
    given = prompts(30, 7, seed=7)
    seqs = [Seq(list(prompt), slot) for slot, prompt in enumerate(given)]
    found: list[list[int]] = [[], []]
    before = runner.launch(hand.plan(chunks=[(seq, len(seq.tokens)) for seq in seqs]))
    for _ in range(20):
        after = runner.launch(hand.plan(seqs))
        while not before.wait(0.01):
            pass
        for tokens, token in zip(found, before.result().token_ids):
            tokens.append(token)
        before = after
    assert found == [reference(prompt, 20) for prompt in given]
