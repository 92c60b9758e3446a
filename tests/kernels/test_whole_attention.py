"""Attention over whole texts of mixed lengths against a plain sum, text by text, in float64."""

from __future__ import annotations

import random

import pytest
import torch

from raysgl.kernels.attention import AttentionLayer
from raysgl.kernels.attention.whole import WholeAttention, WholeBatch

HEAD_DIM = 8


def plain(q_LNH, k_LKH, v_LKH, layer: AttentionLayer, causal: bool) -> torch.Tensor:
    length, heads, _ = q_LNH.shape
    out = torch.empty_like(q_LNH)
    for head in range(heads):
        shared = head * k_LKH.shape[1] // heads
        scores = q_LNH[:, head] @ k_LKH[:, shared].T * layer.scale
        if layer.soft_cap is not None:
            scores = layer.soft_cap * torch.tanh(scores / layer.soft_cap)
        behind = torch.arange(length)[:, None] - torch.arange(length)
        seen = behind.abs() < (layer.window or length)
        if causal:
            seen &= behind >= 0
        out[:, head] = torch.softmax(scores.masked_fill(~seen, -torch.inf), -1) @ v_LKH[:, shared]
    return out


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize(("window", "soft_cap"), [(None, None), (5, None), (None, 2.0), (7, 3.0), (1, None)])
def test_mixed_lengths(causal, kv_heads, window, soft_cap):
    draw = random.Random(f"{causal} {kv_heads} {window} {soft_cap}")
    lengths = sorted((draw.choice([1, 2, 3, 9, 10, 11, 12, 40]) for _ in range(14)), reverse=True)
    torch.manual_seed(draw.randrange(1000))
    q, k, v = (torch.randn(sum(lengths), heads, HEAD_DIM, dtype=torch.float64) for heads in (4, kv_heads, kv_heads))
    layer = AttentionLayer(0, HEAD_DIM**-0.5, window, soft_cap)
    attention = WholeAttention(causal)
    zeros = torch.zeros(sum(lengths), dtype=torch.int64)
    attention.plan(WholeBatch(zeros, zeros, zeros, lengths))
    out = attention.forward(q, k, v, layer)
    for begin, end in zip(torch.tensor([0, *lengths]).cumsum(0).tolist(), torch.tensor(lengths).cumsum(0).tolist()):
        part = slice(begin, end)
        torch.testing.assert_close(out[part], plain(q[part], k[part], v[part], layer, causal), atol=1e-12, rtol=1e-12)
