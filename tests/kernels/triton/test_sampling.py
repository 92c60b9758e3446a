"""Greedy and Gumbel sampling against the same computation in torch, and the draws against the distribution."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton")

from raysgl.kernels.triton.sampling import argmax, sample

MASK = 0xFFFFFFFF


def mix(x: torch.Tensor) -> torch.Tensor:
    """32 bits in int64."""
    x = ((x ^ (x >> 16)) * 0x21F0AAAD) & MASK
    x = ((x ^ (x >> 15)) * 0xD35A2D97) & MASK
    return x ^ (x >> 15)


def gumbel(seed_S: torch.Tensor, index_S: torch.Tensor, vocab: int) -> torch.Tensor:
    """The noise, float64 [S, V]."""
    key = mix((seed_S & MASK) ^ mix(((seed_S >> 32 & MASK) + 0x3C6EF372) & MASK))
    key = mix((key + mix(((index_S & MASK) + 0x1B873593) & MASK)) & MASK)
    key2 = mix(key ^ 0x5BD1E995)
    bits = mix(mix((torch.arange(vocab) + key[:, None]) & MASK) ^ key2[:, None])
    return -torch.log(-torch.log1p(-(bits.double() + 0.5) * 2.0**-32))


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("rows", "vocab"), [(1, 30), (3, 4096), (2, 20000)])
def test_argmax(rows, vocab, dtype, device):
    logits = normal(rows, vocab).to(dtype).to(device)
    for _ in range(2):  # the counters must be at zero again
        assert argmax(logits).tolist() == [int((row == row.max()).nonzero()[0]) for row in logits.cpu()]


def test_argmax_of_odd_rows(device):
    logits = torch.full((4, 9000), float("-inf"))
    logits[0, [5000, 8999]] = 1.0  # the first of equals, in different blocks
    logits[1, 3] = float("nan")
    logits[1, 8192] = -1e30
    logits[3] = float("nan")
    assert argmax(logits.to(device)).tolist() == [5000, 8192, 0, 0]


def test_sample_is_the_gumbel_maximum(device):
    rows, vocab = 6, 9000
    logits = normal(rows, vocab, seed=1)
    temperature = torch.tensor([1.0, 0.0, 0.3, 2.5, 1.0, 1.0])
    seed = torch.tensor([7, 7, -(2**62) - 5, 2**33 + 1, 7, 8])
    index = torch.tensor([0, 0, 11, 2**20, 1, 0])
    noisy = logits.double() / temperature.clamp_min(1e-9)[:, None] + gumbel(seed, index, vocab)
    want = torch.where(temperature > 0, noisy.argmax(-1), logits.argmax(-1))
    arguments = [t.to(device) for t in (logits, temperature, seed, index)]
    out = torch.full((rows,), -1, device=device)
    assert sample(*arguments, tokens_S=out) is out
    assert out.tolist() == want.tolist()
    # A row's draw does not depend on the rows beside it.
    assert sample(*(t[3:] for t in arguments)).tolist() == want.tolist()[3:]


def test_draws_follow_the_softmax():
    """With the noise that the kernel was shown to use above; the interpreter would take minutes."""
    draws, logits = 20000, torch.tensor([2.0, 1.0, 0.0, float("-inf"), -1.0, 1.5])
    expected = torch.softmax(logits / 0.8, 0) * draws
    # Neighbouring indices of one seed, and neighbouring seeds at one index: both must look independent.
    counter, fixed = torch.arange(draws), torch.full((draws,), 42)
    for seed, index in ((fixed, counter), (counter, fixed)):
        counts = (logits / 0.8 + gumbel(seed, index, 6)).argmax(-1).bincount(minlength=6)
        assert counts[3] == 0
        keep = expected > 0
        chi_square = ((counts - expected)[keep] ** 2 / expected[keep]).sum()
        assert chi_square < 23.5  # 4 degrees of freedom, p = 1e-4; the draws are always the same


def test_noise_is_gumbel_and_uncorrelated():
    """The hash itself, on more numbers than the interpreter would manage."""
    noise = gumbel(torch.arange(64), torch.full((64,), 5), 4096)
    ranks = torch.exp(-torch.exp(-noise)).flatten().sort().values  # uniform, if the noise is Gumbel
    even = (torch.arange(len(ranks)) + 0.5) / len(ranks)
    assert (ranks - even).abs().max() < 2.0 / len(ranks) ** 0.5  # Kolmogorov-Smirnov, p = 7e-4
    for a, b in ((noise[:-1], noise[1:]), (noise[:, :-1], noise[:, 1:])):
        correlation = torch.corrcoef(torch.stack((a.flatten(), b.flatten())))[0, 1]
        assert correlation.abs() < 4.0 / a.numel() ** 0.5
