"""The draw without sorting against the rules written down in float64, and the sampler with it against the sampler without."""

from __future__ import annotations

import math

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton")

from raysgl.kernels.triton import ops
from raysgl.kernels.triton.draw import draw
from raysgl.sampling import sampler as sampler_module
from raysgl.sampling.params import SamplingParams
from raysgl.sampling.sampler import Sampler
from tests.sampling import naive


def numbers_of(params: SamplingParams, vocab: int, uniforms: np.ndarray) -> torch.Tensor:
    """[L, 5], one row for each uniform."""
    top_k = vocab if params.top_k < 1 else min(params.top_k, vocab)
    min_p = math.log(params.min_p) if params.min_p > 0 else -math.inf
    row = [0.0 if params.greedy else params.temperature, params.top_p if params.top_p < 1 else 2.0, top_k, min_p, 0.0]
    numbers = torch.tensor(row, dtype=torch.float64).repeat(len(uniforms), 1)
    numbers[:, 4] = torch.from_numpy(uniforms)
    return numbers


def logits_of(kind: str, vocab: int) -> torch.Tensor:
    x = torch.randn(vocab, generator=torch.Generator().manual_seed(vocab))
    match kind:
        case "flat":
            return x * 0.1
        case "peaked":
            return x * 4.0
        case "ties":
            return x.round()
        case "equal":
            return torch.full((vocab,), 3.0)
        case "steep":
            return -torch.arange(vocab).float()[torch.randperm(vocab, generator=torch.Generator().manual_seed(1))] * 9.0
        case "masked":
            x[torch.arange(vocab) % 7 > 0] = -math.inf
            return x
    raise ValueError(kind)


PARAMS = [
    SamplingParams(),
    SamplingParams(temperature=0.7, top_p=0.9),
    SamplingParams(top_p=0.05),
    SamplingParams(top_p=0.999, temperature=2.0),
    SamplingParams(top_k=2),
    SamplingParams(top_k=700),
    SamplingParams(top_k=40, top_p=0.8, min_p=0.02),
    SamplingParams(min_p=0.3),
    SamplingParams(temperature=0.0),
]


def check(kind: str, params: SamplingParams, candidates: int, rows: int, device, vocab: int = 1500) -> None:
    """The noise aims at the middle of kept tokens' shares; few candidates make the pivots close in, as a large vocabulary does."""
    logits = logits_of(kind, vocab)
    expected = naive.probabilities(logits, params)
    kept = np.flatnonzero(expected > 1e-6)
    targets = np.cumsum(expected) - expected / 2
    aimed = np.unique(kept[np.linspace(0, len(kept) - 1, rows).astype(int)])
    numbers = numbers_of(params, vocab, targets[aimed]).to(device)
    found = draw(logits.to(device).expand(len(aimed), -1), *numbers.unbind(1), candidates=candidates)
    assert found.tolist() == aimed.tolist()


@pytest.mark.parametrize(
    ("kind", "params", "candidates"),
    [
        ("flat", PARAMS[1], 16),
        ("flat", PARAMS[0], 1024),
        ("peaked", PARAMS[6], 16),
        ("peaked", PARAMS[3], 1024),
        ("ties", PARAMS[5], 16),
        ("ties", PARAMS[1], 1024),
        ("equal", PARAMS[2], 16),
        ("steep", PARAMS[5], 16),
        ("masked", PARAMS[7], 1024),
        ("masked", PARAMS[5], 16),
        ("equal", PARAMS[8], 1024),
    ],
)
def test_exactly_the_kept_tokens_are_drawn(kind, params, candidates, device):
    check(kind, params, candidates, 2, device)


@pytest.mark.gpu
@pytest.mark.parametrize("vocab", [1500, 40000])
@pytest.mark.parametrize("params", PARAMS, ids=repr)
@pytest.mark.parametrize("kind", ["flat", "peaked", "ties", "equal", "steep", "masked"])
@pytest.mark.parametrize("candidates", [16, 4096])
def test_exactly_the_kept_tokens_are_drawn_gpu(kind, params, candidates, vocab):
    """All combinations, for which the interpreter would take minutes."""
    check(kind, params, candidates, 8, torch.device("cuda"), vocab)


@pytest.mark.parametrize("vocab", [1, 7, 20011])
def test_bfloat16_of_every_size(vocab, device):
    logits = logits_of("peaked", vocab).to(torch.bfloat16)
    expected = naive.probabilities(logits.float(), SamplingParams(top_p=0.9))
    aimed = np.flatnonzero(expected)[-2:]
    numbers = numbers_of(SamplingParams(top_p=0.9), vocab, (np.cumsum(expected) - expected / 2)[aimed]).to(device)
    wide = torch.zeros(len(aimed), vocab + 5, dtype=torch.bfloat16, device=device)
    wide[:, :vocab] = logits
    wide[:, vocab:] = 100.0  # what lies behind a row is not read
    assert draw(wide[:, :vocab], *numbers.unbind(1)).tolist() == aimed.tolist()


def test_a_row_of_nothing_but_minus_infinity_gives_some_token(device):
    numbers = numbers_of(SamplingParams(top_p=0.5), 100, np.array([0.5])).to(device)
    assert 0 <= draw(torch.full((1, 100), -math.inf, device=device), *numbers.unbind(1)).item() < 100


def test_the_sampler_draws_the_same_with_it(monkeypatch, device):
    """Rows of every kind together, several steps, with penalties, bias and masks."""
    params = [
        *PARAMS[1:8:3],
        SamplingParams(temperature=0.0),
        SamplingParams(top_p=0.9, repetition_penalty=1.3, frequency_penalty=0.5),
        SamplingParams(top_p=0.9, logit_bias={3: 2.0, 5: -100.0}),
        SamplingParams(temperature=0.0, logit_bias={3: 100.0}),
        SamplingParams(top_k=1, temperature=0.5),
        SamplingParams(top_k=5, allowed_token_ids=[1, 2, 3]),
        SamplingParams(top_p=0.8, logprobs=True, top_logprobs=2),
    ]
    vocab, steps = 1000, 2

    def run() -> list[list[int]]:
        sampler = Sampler(len(params), vocab, device)
        for slot, sampling in enumerate(params):
            sampler.init_slot(slot, sampling, seed=slot, prompt_ids=np.array([5, 6], np.int32))
        tokens = []
        for step in range(steps):
            logits = torch.randn(len(params), vocab, generator=torch.Generator().manual_seed(step)) * 2.0
            sampled = sampler.sample(logits.to(torch.bfloat16).to(device), np.arange(len(params)))
            tokens.append(sampled.tokens_L.tolist())
        return tokens

    monkeypatch.setattr(sampler_module, "triton_sampling", lambda device: None)
    want = run()
    monkeypatch.setattr(sampler_module, "triton_sampling", lambda device: ops)
    assert run() == want
