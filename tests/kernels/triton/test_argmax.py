"""The first of the largest, as in torch."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton")

from raysgl.kernels.triton.argmax import argmax


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("rows", "vocab"), [(1, 30), (3, 4096), (2, 20000)])
def test_argmax(rows, vocab, dtype, device):
    logits = torch.randn(rows, vocab, generator=torch.Generator().manual_seed(0)).to(dtype).to(device)
    for _ in range(2):  # the counters must be at zero again
        assert argmax(logits).tolist() == [int((row == row.max()).nonzero()[0]) for row in logits.cpu()]


def test_argmax_of_odd_rows(device):
    logits = torch.full((4, 9000), float("-inf"))
    logits[0, [5000, 8999]] = 1.0  # the first of equals, in different blocks
    logits[1, 3] = float("nan")
    logits[1, 8192] = -1e30
    logits[3] = float("nan")
    assert argmax(logits.to(device)).tolist() == [5000, 8192, 0, 0]


def test_argmax_of_a_part_of_wider_rows(device):
    logits = torch.randn(5, 3000, generator=torch.Generator().manual_seed(1)).to(device)
    assert argmax(logits[:, :1000]).tolist() == logits[:, :1000].argmax(-1).tolist()
