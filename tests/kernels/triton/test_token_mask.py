"""Masks of grammars, against their torch reference and against Python's bits."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton")

from raysgl.kernels.token_mask import apply_token_mask
from raysgl.kernels.triton.token_mask import apply_token_mask as kernel


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("rows", "vocab", "masked"), [(1, 31, [0]), (3, 4097, [2, 0]), (4, 10000, [0, 1, 2, 3]), (2, 64, [1])])
def test_masked_rows_lose_what_is_forbidden_and_nothing_else(rows, vocab, masked, dtype, device):
    source = torch.Generator().manual_seed(vocab)
    logits = torch.randn(rows, vocab, generator=source).to(dtype)
    bits = torch.randint(-(2**31), 2**31, (len(masked), -(-vocab // 32)), generator=source).int()
    bits[0, -1] = -(2**31)
    expected = logits.clone()
    for row, words in zip(masked, bits.tolist()):
        for token in range(vocab):
            if not words[token // 32] >> (token % 32) & 1:
                expected[row, token] = float("-inf")
    reference = logits.clone()
    apply_token_mask(reference, torch.tensor(masked), bits)
    assert torch.equal(reference, expected)
    on_device = logits.to(device)
    kernel(on_device, torch.tensor(masked).to(device), bits.to(device))
    assert torch.equal(on_device.cpu(), expected)
