"""Skinny linear layers with all that can be fused into them, against torch in float64."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton")

from raysgl.kernels import activation, norm
from raysgl.kernels.triton.gemv import GemvConfig
from raysgl.kernels.triton.linear import skinny_linear
from raysgl.kernels.triton.skinny import SkinnyConfig
from tests.kernels.triton.paged import assert_close

SPLIT = SkinnyConfig(16, 32, 3, 4, 2)
WHOLE = SkinnyConfig(16, 64, 1, 4, 2)


def normal(*shape: int, dtype, device, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype).to(device)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("tokens", "outputs", "inputs", "config"),
    [
        (1, 32, 128, GemvConfig(8, 64, 4, 1)),
        (1, 30, 100, GemvConfig(8, 64, 4, 1)),  # neither divides
        (1, 30, 100, GemvConfig(4, 32, 4, 3)),
        (1, 21, 192, None),
        (2, 32, 192, SPLIT),
        (5, 20, 100, SPLIT),
        (16, 32, 128, WHOLE),
        (17, 20, 100, WHOLE),
        (3, 40, 96, None),
    ],
)
@pytest.mark.parametrize("fused", ["nothing", "norm", "norm, silu", "residual", "bias", "all"])
def test_skinny_linear(tokens, outputs, inputs, config, fused, dtype, device):
    everything = fused == "all"
    silu = everything or "silu" in fused
    x = normal(tokens, inputs, dtype=dtype, device=device)
    weight = normal(outputs * (2 if silu else 1), inputs, dtype=dtype, device=device, seed=1) / inputs**0.5
    norm_I = normal(inputs, dtype=dtype, device=device, seed=2) if everything or "norm" in fused else None
    bias = normal(weight.shape[0], dtype=dtype, device=device, seed=3) if everything or "bias" in fused else None
    residual = normal(tokens, outputs, dtype=dtype, device=device, seed=4) if everything or "residual" in fused else None

    want = x.double() if norm_I is None else norm.rms_norm(x.double(), norm_I.double(), 1e-5)
    want = torch.nn.functional.linear(want, weight.double(), None if bias is None else bias.double())
    want = activation.silu_mul(want) if silu else want
    want = want if residual is None else residual.double() + want

    # Twice: the counters of a split product must be at zero again.
    for _ in range(2):
        stream = None if residual is None else residual.clone()
        out = skinny_linear(x, weight, norm_I=norm_I, eps=1e-5, bias_O=bias, silu_mul=silu, residual_TO=stream, config=config)
        assert stream is None or out is stream
        assert_close(out, want.cpu(), dtype)


def test_rows_of_a_wider_tensor(device):
    wide = normal(4, 96, dtype=torch.float32, device=device)
    weight = normal(16, 64, dtype=torch.float32, device=device, seed=1)
    assert_close(skinny_linear(wide[:, :64], weight), (wide[:, :64].double() @ weight.double().T).cpu(), torch.float32)


def test_refuses(device):
    weight = normal(16, 64, dtype=torch.float32, device=device)
    with pytest.raises(ValueError, match="1 to 64 tokens, not 65"):
        skinny_linear(normal(65, 64, dtype=torch.float32, device=device), weight)
    with pytest.raises(ValueError, match="contiguous"):
        skinny_linear(normal(1, 16, dtype=torch.float32, device=device), weight.T)
