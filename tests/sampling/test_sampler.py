"""The sampler against `naive`: distributions, filters, penalties, masks, log probabilities, and its independence of the batch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from raysgl.sampling import filters
from raysgl.sampling.params import SamplingParams
from raysgl.sampling.sampler import Sampler
from raysgl.sampling.token_masks import TokenMasks
from tests.sampling import naive

CPU = torch.device("cpu")


def random_logits(rows: int, vocab_size: int, seed: int = 0, spread: float = 3.0) -> torch.Tensor:
    return torch.randn(rows, vocab_size, generator=torch.Generator().manual_seed(seed)) * spread


def sampler_of(params: list[SamplingParams], vocab_size: int, seeds=None, **init) -> Sampler:
    sampler = Sampler(len(params), vocab_size, CPU)
    for slot, sampling in enumerate(params):
        sampler.init_slot(slot, sampling, seeds[slot] if seeds else slot, **init)
    return sampler


def one_step(sampler: Sampler, logits: torch.Tensor, slots=None) -> list[int]:
    slots = np.arange(logits.shape[0]) if slots is None else np.array(slots)
    return sampler.sample(logits.clone(), slots).tokens_L.tolist()


def draws(params: SamplingParams, logits_V: torch.Tensor, count: int, rows: int = 500) -> np.ndarray:
    """Relative frequencies of `count` tokens, `rows` seeds at a time."""
    sampler = sampler_of([params] * rows, len(logits_V))
    found = np.zeros(len(logits_V))
    for _ in range(count // rows):
        np.add.at(found, one_step(sampler, logits_V.expand(rows, -1)), 1)
    return found / found.sum()


FILTERS = [
    SamplingParams(),
    SamplingParams(temperature=0.5),
    SamplingParams(temperature=2.5, top_k=7),
    SamplingParams(top_p=0.8),
    SamplingParams(min_p=0.05),
    SamplingParams(temperature=1.3, top_p=0.9, top_k=20, min_p=0.02),
]


@pytest.mark.parametrize("params", FILTERS, ids=repr)
def test_tokens_have_the_distribution_asked_for(params):
    logits_V = random_logits(1, 300, seed=1, spread=2.0)[0]
    expected = naive.probabilities(logits_V, params)
    found = draws(params, logits_V, 60_000)
    assert not found[expected == 0].any(), "a token was drawn that the filters forbid"
    # The expected total variation of n draws is at most sqrt(support / n) / 2 (Cauchy-Schwarz).
    bound = 0.5 * np.sqrt((expected > 0).sum() / 60_000)
    assert 0.5 * np.abs(found - expected).sum() < 1.5 * bound


@settings(max_examples=150)
@given(data=st.data())
def test_only_kept_tokens_are_drawn_and_all_kept_tokens_can_be(data):
    """With the noise swept over [0, 1) in steps smaller than the least kept probability, exactly the kept set comes out."""
    vocab_size = data.draw(st.sampled_from([5, 64, 257, 1500]))
    params = SamplingParams(
        temperature=data.draw(st.sampled_from([0.3, 1.0, 2.0])),
        top_p=data.draw(st.sampled_from([0.05, 0.5, 0.9, 0.999, 1.0])),
        top_k=data.draw(st.sampled_from([-1, 2, 3, 50, 300, 1400])),
        min_p=data.draw(st.sampled_from([0.0, 0.01, 0.3, 1.0])),
    )
    logits = random_logits(1, vocab_size, seed=data.draw(st.integers(0, 999)), spread=data.draw(st.sampled_from([0.1, 3.0])))
    if data.draw(st.booleans()):
        logits = logits.round()  # many ties
    expected = naive.probabilities(logits[0], params)
    kept = np.flatnonzero(expected)
    # Aim at the middle of every kept token's share, the cumulated probability in token order.
    targets = (np.cumsum(expected) - expected / 2)[kept]
    wide = expected[kept] > 1e-6
    sampler = sampler_of([params] * len(kept), vocab_size)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("raysgl.sampling.sampler.uniforms", lambda seeds, indices: targets.copy())
        found = np.array(one_step(sampler, logits.expand(len(kept), -1)))
    assert (found[wide] == kept[wide]).all()


@pytest.mark.parametrize(
    "params", [SamplingParams(top_p=0.6), SamplingParams(top_k=3000), SamplingParams(top_p=0.9, top_k=2000)]
)
def test_the_nucleus_is_found_however_flat_the_distribution(params):
    """4000 nearly equal tokens: no tier of candidates holds the mass, so histograms find the threshold."""
    logits = torch.linspace(0, 0.5, 4000)[torch.randperm(4000, generator=torch.Generator().manual_seed(0))]
    expected = naive.probabilities(logits, params)
    kept = np.flatnonzero(expected)
    assert len(kept) > 1024
    x = (logits - logits.max()).unsqueeze(0)
    settings = sampler_of([params], 4000).settings.numbers_NC[0]
    found = filters.thresholds(x, x.exp().sum(-1), torch.tensor([settings[1]]).float(), torch.tensor([int(settings[2])]), 4000)
    assert np.array_equal(np.flatnonzero(x[0] >= found), kept)


def test_rows_of_every_kind_find_their_thresholds_together():
    """Some rows are done with few candidates, some need more, some the histograms; some have no filter at all."""
    params = [
        SamplingParams(top_p=0.5),
        SamplingParams(),
        SamplingParams(top_p=0.7),
        SamplingParams(top_k=900),
        SamplingParams(top_p=0.95),
        SamplingParams(top_k=3),
        SamplingParams(temperature=0.0),
    ]
    logits = random_logits(len(params), 3000, seed=5)
    logits[2] *= 0.4
    logits[4] *= 0.1
    sampler = sampler_of(params, 3000)
    for _ in range(30):
        for row, token in enumerate(one_step(sampler, logits)):
            assert naive.probabilities(logits[row], params[row])[token] > 0


def test_histograms_and_candidates_agree():
    logits = random_logits(40, 1000, seed=3)
    x = logits - logits.amax(-1, keepdim=True)
    generator = torch.Generator().manual_seed(1)
    top_p, top_k = torch.rand(40, generator=generator), torch.randint(1, 1000, (40,), generator=generator)
    found, covered = filters._of_candidates(x, x.exp().sum(-1), top_p, top_k, 999)
    assert covered.all()
    assert torch.equal(found, filters._of_histograms(x, top_p, top_k))


def test_greedy_is_argmax():
    logits = random_logits(6, 1000)
    params = [SamplingParams(temperature=0.0), SamplingParams(top_k=1), SamplingParams(temperature=1e-7, top_p=0.5)] * 2
    assert one_step(sampler_of(params, 1000), logits) == logits.argmax(-1).tolist()
    mixed = [params[0], SamplingParams(temperature=3.0), params[1], SamplingParams(temperature=3.0)]
    found = one_step(sampler_of(mixed, 1000), logits[:4])
    assert [found[0], found[2]] == logits[[0, 2]].argmax(-1).tolist()


VARIED = [
    SamplingParams(temperature=0.7, top_p=0.9),
    SamplingParams(temperature=0.0),
    SamplingParams(temperature=1.5),
    SamplingParams(min_p=0.1, logprobs=True, top_logprobs=3),
    SamplingParams(top_k=40, repetition_penalty=1.3),
    SamplingParams(temperature=0.0, frequency_penalty=0.7, presence_penalty=0.2),
    SamplingParams(logit_bias={3: 5.0, 7: -100.0}),
    SamplingParams(temperature=4.0, top_p=0.999, min_new_tokens=3),
    SamplingParams(allowed_token_ids=tuple(range(5, 90)), logprobs=True, token_ids_logprob=(3, 9)),
    SamplingParams(temperature=0.5, top_k=5, bad_words=((8,), (11, 12), (5, 6, 7))),
]


def test_a_row_does_not_notice_its_neighbours():
    """Ten steps together and ten steps alone give the same tokens, also when the row goes on in another slot."""
    vocab_size, steps = 2000, 10
    seeds = [1000 + i for i in range(len(VARIED))]
    stream = [random_logits(len(VARIED), vocab_size, seed=step) for step in range(steps)]
    prompt = np.array([5, 6, 7], np.int32)
    together = sampler_of(VARIED, vocab_size, seeds, prompt_ids=prompt, stop_ids=(1, 2))
    expected = [one_step(together, logits) for logits in stream]
    for row, params in enumerate(VARIED):
        alone = Sampler(3, vocab_size, CPU)
        alone.init_slot(2, params, seeds[row], prompt_ids=prompt, stop_ids=(1, 2))
        found = [one_step(alone, logits[row : row + 1], [2])[0] for logits in stream[:6]]
        # A replica takes over: the tokens so far are known to it, nothing else.
        other = Sampler(2, vocab_size, CPU)
        other.init_slot(0, params, seeds[row], 6, prompt, np.array(found, np.int32), (1, 2))
        found += [one_step(other, logits[row : row + 1], [0])[0] for logits in stream[6:]]
        assert found == [tokens[row] for tokens in expected], params


def test_seeds_give_different_texts_and_the_same_seed_the_same():
    logits = random_logits(1, 500, spread=0.5).expand(4, -1)
    sampler = sampler_of([SamplingParams()] * 4, 500, seeds=[1, 2, -(2**63), 1])
    columns = list(zip(*[one_step(sampler, logits) for _ in range(20)]))
    assert columns[0] == columns[3]
    assert len(set(columns)) == 3
    assert len(set(columns[0])) > 10


@settings(max_examples=60)
@given(data=st.data())
def test_penalties_bias_and_minimum_as_written_down(data):
    vocab_size, steps = 12, 6
    number = st.sampled_from([-2.0, -0.5, 0.0, 0.3, 2.0])
    rows = data.draw(st.integers(1, 4))
    params, prompts, stops = [], [], []
    for _ in range(rows):
        bias = data.draw(st.dictionaries(st.integers(0, vocab_size - 1), st.sampled_from([-100.0, -1.0, 2.5]), max_size=4))
        params.append(
            SamplingParams(
                temperature=0.0,
                frequency_penalty=data.draw(number),
                presence_penalty=data.draw(number),
                repetition_penalty=data.draw(st.sampled_from([0.5, 1.0, 1.7])),
                logit_bias=bias or None,
                min_new_tokens=data.draw(st.integers(0, 4)),
            )
        )
        prompts.append(data.draw(st.lists(st.integers(0, vocab_size - 1), min_size=1, max_size=5)))
        stops.append(data.draw(st.lists(st.integers(0, vocab_size - 1), max_size=3, unique=True)))
    sampler = Sampler(rows + 2, vocab_size, CPU)
    slots = np.random.default_rng(0).permutation(rows + 2)[:rows]
    for slot, sampling, prompt, stop in zip(slots, params, prompts, stops):
        sampler.init_slot(int(slot), sampling, 0, 0, np.array(prompt, np.int32), stop_ids=tuple(stop))
    outputs = [[] for _ in range(rows)]
    for step in range(steps):
        logits = random_logits(rows, vocab_size, seed=step)
        found = one_step(sampler, logits, slots)
        for row, token in enumerate(found):
            wanted = naive.adjusted(logits[row], params[row], prompts[row], outputs[row], stops[row])
            assert wanted[token] == pytest.approx(wanted.max(), abs=1e-5)
            outputs[row].append(token)


@settings(max_examples=60)
@given(data=st.data())
def test_bad_words_and_allowed_tokens_as_written_down(data):
    """Also where a sequence comes with output already, and beside rows that have neither."""
    vocab_size, steps = 8, 8
    token = st.integers(0, vocab_size - 1)
    words = st.lists(st.lists(token, min_size=1, max_size=3).map(tuple), max_size=4).map(tuple)
    allowed = st.lists(token, unique=True, max_size=5).map(tuple)
    params, outputs = [], []
    for _ in range(data.draw(st.integers(1, 4))):
        params.append(SamplingParams(temperature=0.0, bad_words=data.draw(words), allowed_token_ids=data.draw(allowed)))
        outputs.append(data.draw(st.lists(token, max_size=3)))
    sampler = Sampler(len(params), vocab_size, CPU)
    for slot, (sampling, output) in enumerate(zip(params, outputs)):
        sampler.init_slot(slot, sampling, 0, len(output), output_ids=np.array(output, np.int32))
    for step in range(steps):
        logits = random_logits(len(params), vocab_size, seed=step)
        found = one_step(sampler, logits)
        for row, chosen in enumerate(found):
            wanted = naive.adjusted(logits[row], params[row], (), outputs[row])
            assert chosen == wanted.argmax() or np.isneginf(wanted).all()
            outputs[row].append(chosen)


def test_what_is_not_allowed_is_not_drawn():
    params = SamplingParams(temperature=5.0, allowed_token_ids=(3, 4, 9), bad_words=((4,),))
    found = draws(params, random_logits(1, 40)[0], 2000)
    assert set(np.flatnonzero(found)) == {3, 9}


def test_a_greedy_step_with_a_mask_is_no_plain_argmax():
    sampler = sampler_of([SamplingParams(temperature=0.0, bad_words=((1, 2),)), SamplingParams(temperature=0.0)], 5)
    assert not sampler.settings.takes_argmax(np.array([0])) and sampler.settings.takes_argmax(np.array([1]))
    sampler.init_slot(0, SamplingParams(temperature=0.0, allowed_token_ids=(1,)), 0)
    assert not sampler.settings.takes_argmax(np.array([0]))


def test_penalties_of_texts_longer_than_the_first_tables():
    """A long prompt beside a short one, and outputs that outgrow what was set aside."""
    vocab_size = 2000
    params = [SamplingParams(temperature=0.0, frequency_penalty=0.4, repetition_penalty=1.5)] * 2
    prompts = [list(range(700)), [5]]
    sampler = Sampler(2, vocab_size, CPU)
    sampler.init_slot(1, params[1], 0, 0, np.array(prompts[1], np.int32))
    outputs: list[list[int]] = [[], []]
    for step in range(600):
        if step == 20:
            sampler.init_slot(0, params[0], 0, 0, np.array(prompts[0], np.int32))
        rows = [1] if step < 20 else [0, 1]
        logits = random_logits(len(rows), vocab_size, seed=step)
        for row, logits_V, token in zip(rows, logits, one_step(sampler, logits, rows)):
            if step % 40 == 0:
                wanted = naive.adjusted(logits_V, params[row], prompts[row], outputs[row])
                assert wanted[token] == pytest.approx(wanted.max(), abs=1e-5)
            outputs[row].append(token)


def test_a_slot_forgets_its_last_sequence():
    sampler = Sampler(1, 8, CPU)
    bias = {i: 50.0 for i in range(3)}
    first = SamplingParams(temperature=0, presence_penalty=2.0, repetition_penalty=2.0, logit_bias=bias)
    sampler.init_slot(0, first, 1, 0, np.array([1, 2], np.int32))
    assert one_step(sampler, torch.zeros(1, 8), [0]) == [0]
    # The second one's prompt has what the first one's output had: that is no output of its own.
    second = SamplingParams(temperature=0, presence_penalty=2.0, logit_bias={5: 1.0})
    sampler.init_slot(0, second, 1, 0, np.array([0], np.int32))
    logits = torch.tensor([[2.1, 1.9, 1.8, 2.05, 0, 0, 0, 0]])
    assert one_step(sampler, logits, [0]) == [0]
    sampler.init_slot(0, SamplingParams(temperature=0), 1)
    assert one_step(sampler, logits, [0]) == [0]


def test_a_long_bias_beside_a_short_one():
    long = {i: float(i) for i in range(100)}
    params = [SamplingParams(temperature=0, logit_bias={0: 1.0, 4: 7.5}), SamplingParams(temperature=0, logit_bias=long)]
    logits = torch.zeros(2, 120)
    logits[0, 4], logits[0, 9] = -1.0, 6.4
    logits[1, 110] = 98.5
    assert one_step(sampler_of(params, 120), logits) == [4, 99]


def test_log_probabilities_are_of_the_raw_logits():
    logits = random_logits(3, 50)
    params = [
        SamplingParams(temperature=0.0, logprobs=True, top_logprobs=2, logit_bias={7: 100.0}),
        SamplingParams(),
        SamplingParams(temperature=0.3, logprobs=True, top_logprobs=0, presence_penalty=1.0),
    ]
    sampled = sampler_of(params, 50, prompt_ids=np.array([9], np.int32)).sample(logits.clone(), np.arange(3))
    expected = logits.double().log_softmax(-1)
    assert sampled.asking == [0, 2]
    first, third = sampled.logprobs.entries()
    assert first.token_id == sampled.tokens_L[0] == 7
    assert first.logprob == pytest.approx(expected[0, 7].item(), abs=1e-5)
    best = expected[0].topk(2)
    assert [token for token, _ in first.top] == best.indices.tolist()
    assert [value for _, value in first.top] == pytest.approx(best.values.tolist(), abs=1e-5)
    assert third.token_id == sampled.tokens_L[2]
    assert third.logprob == pytest.approx(expected[2, third.token_id].item(), abs=1e-5)
    assert third.top == []


def test_log_probabilities_of_named_tokens():
    logits = random_logits(3, 50)
    params = [
        SamplingParams(temperature=0.0, logprobs=True, token_ids_logprob=(4, 49, 4)),
        SamplingParams(temperature=0.0, logprobs=True),
        SamplingParams(temperature=0.0, logprobs=True, token_ids_logprob=(0,)),
    ]
    entries = sampler_of(params, 50).sample(logits.clone(), np.arange(3)).logprobs.entries()
    expected = logits.double().log_softmax(-1)
    assert entries[0].asked == pytest.approx(expected[0, [4, 49, 4]].tolist(), abs=1e-5)
    assert entries[1].asked == []
    assert entries[2].asked == pytest.approx([expected[2, 0].item()], abs=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_extremes_give_a_token(dtype):
    """Huge and tiny temperatures, infinite logits, one possible token, every filter at its end."""
    params = [
        SamplingParams(temperature=1e-5, top_p=0.5),
        SamplingParams(temperature=1e5),
        SamplingParams(top_p=1e-9),
        SamplingParams(min_p=1.0),
        SamplingParams(top_k=10**6),
        SamplingParams(top_p=0.5, logit_bias={0: -100.0}),
    ]
    logits = random_logits(len(params), 300, spread=30).to(dtype)
    logits[:, 5:250] = float("-inf")
    found = one_step(sampler_of(params, 300), logits)
    assert all(0 <= token < 300 and torch.isfinite(logits[row, token]) for row, token in enumerate(found))
    for row in (0, 2, 3):
        assert found[row] == logits[row].argmax()


@pytest.mark.gpu
def test_cuda_draws_what_the_cpu_draws():
    device = torch.device("cuda")
    params = VARIED * 4
    samplers = [Sampler(len(params), 32000, where) for where in (CPU, device)]
    for sampler in samplers:
        for slot, sampling in enumerate(params):
            sampler.init_slot(slot, sampling, slot, prompt_ids=np.arange(50, dtype=np.int32), stop_ids=(1, 2))
    slots, same, total = np.arange(len(params)), 0, 0
    for step in range(20):
        logits = random_logits(len(params), 32000, seed=step)
        on_cpu, on_cuda = (s.sample(logits.clone().to(w), slots).tokens_L.tolist() for s, w in zip(samplers, (CPU, device)))
        same += sum(a == b for a, b in zip(on_cpu, on_cuda))
        total += len(on_cpu)
    assert same >= total - 1, "exp differs in the last bit, which may move a draw once in a million"


@pytest.mark.gpu
def test_sampling_does_not_wait_for_the_device():
    device = torch.device("cuda")
    sampler = Sampler(len(VARIED), 32000, device)
    for slot, sampling in enumerate(VARIED):
        sampler.init_slot(slot, sampling, slot, prompt_ids=np.arange(50, dtype=np.int32), stop_ids=(1, 2))
    logits = random_logits(len(VARIED), 32000).to(device)
    try:
        torch.cuda.set_sync_debug_mode("error")
        for _ in range(3):
            sampler.sample(logits.clone(), np.arange(len(VARIED)))
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize(
    "params", [SamplingParams(temperature=0.0), SamplingParams(top_p=0.9), SamplingParams(logit_bias={3: 50.0})]
)
def test_a_mask_leaves_what_it_allows(params):
    sampler = sampler_of([params] * 4, 70)
    allowed = np.zeros((2, 96), np.uint8)
    allowed[0, [5, 69]] = 1
    allowed[1, [40]] = 1
    masks = TokenMasks(np.array([1, 3]), np.packbits(allowed, axis=1, bitorder="little").view(np.int32))
    free = sampler_of([params] * 4, 70)
    for seed in range(20):
        logits = random_logits(4, 70, seed)
        tokens = sampler.sample(logits.clone(), np.arange(4), masks).tokens_L.tolist()
        assert tokens[1] in (5, 69) and tokens[3] == 40
        without = one_step(free, logits)
        assert [tokens[0], tokens[2]] == [without[0], without[2]]
