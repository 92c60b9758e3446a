"""The fused ops against their formulas."""

from __future__ import annotations

import pytest
import torch

from raysgl.kernels.activation import silu_mul
from raysgl.kernels.norm import add_rms_norm, rms_norm
from raysgl.kernels.rotary import cos_sin, rotate

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("tokens", [1, 5, 300])
def test_rms_norm(tokens, device):
    x, weight = torch.randn(tokens, 96, device=device), torch.randn(96, device=device)
    expected = x * (x.square().mean(-1, keepdim=True) + 1e-5).rsqrt() * weight
    torch.testing.assert_close(rms_norm(x, weight, 1e-5), expected)
    residual = torch.randn_like(x)
    total = x + residual
    normed, after = add_rms_norm(x, residual, weight, 1e-5)
    torch.testing.assert_close(after, total)
    torch.testing.assert_close(normed, rms_norm(total, weight, 1e-5))


@pytest.mark.parametrize("device", DEVICES)
def test_silu_mul(device):
    x = torch.randn(7, 64, device=device)
    gate, up = x[:, :32], x[:, 32:]
    torch.testing.assert_close(silu_mul(x.clone()), gate * gate.sigmoid() * up)


@pytest.mark.parametrize("device", DEVICES)
def test_rotate_turns_each_pair_by_its_angle(device):
    x = torch.randn(5, 3, 8, device=device)
    positions = torch.tensor([0, 1, 7, 100, 4000], device=device)
    inv_freq = torch.tensor([1.0, 0.5, 0.1, 0.01], device=device)
    got = rotate(x, *cos_sin(positions, inv_freq, 1.5, torch.float32))
    angle = (positions[:, None].float() * inv_freq)[:, None]
    turned = torch.complex(x[..., :4], x[..., 4:]) * torch.polar(torch.full_like(angle, 1.5), angle)
    torch.testing.assert_close(got, torch.cat((turned.real, turned.imag), -1))
    torch.testing.assert_close(got[0], 1.5 * x[0])
