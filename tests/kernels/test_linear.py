"""Linear layers with their neighbours folded in: both ways give the same; and the table that chooses."""

from __future__ import annotations

import json

import pytest
import torch

from raysgl.kernels import linear_table
from raysgl.kernels.activation import silu_mul
from raysgl.kernels.linear import folded_linear
from raysgl.kernels.norm import rms_norm

pytest.importorskip("triton")

from raysgl.kernels.triton.gemv import GemvConfig
from raysgl.kernels.triton.skinny import SkinnyConfig
from tests.conftest import have_gpu

DEVICE = torch.device("cuda" if have_gpu() else "cpu")


def normal(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE)


@pytest.mark.parametrize("config", [None, GemvConfig(4, 32, 4, 2), SkinnyConfig(16, 32, 2, 4, 2)], ids=str)
@pytest.mark.parametrize("tokens", [1, 5])
@pytest.mark.parametrize("bias", [False, True])
def test_both_ways_are_the_composition(monkeypatch, config, tokens, bias):
    if isinstance(config, GemvConfig) and tokens > 1:
        pytest.skip("for one token")
    monkeypatch.setattr(linear_table, "find", lambda x, weight, silu=False: config)
    x, stream, weight = normal(tokens, 64, seed=0), normal(tokens, 24, seed=1), normal(48, 64, seed=2) / 8
    norm, bias_O = normal(64, seed=3), normal(48, seed=4) if bias else None
    want = silu_mul(torch.nn.functional.linear(rms_norm(x, norm, 1e-5), weight, bias_O))
    got = folded_linear(x, weight, norm_I=norm, eps=1e-5, bias_O=bias_O, silu=True)
    torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-4)
    wide = normal(tokens, 48, seed=5)
    want = wide + torch.nn.functional.linear(x, weight, bias_O)
    assert folded_linear(x, weight, bias_O=bias_O, residual_TO=wide) is wide
    torch.testing.assert_close(wide, want, atol=1e-4, rtol=1e-4)
    want = stream + silu_mul(torch.nn.functional.linear(x, weight, bias_O))
    torch.testing.assert_close(
        folded_linear(x, weight, bias_O=bias_O, silu=True, residual_TO=stream), want, atol=1e-4, rtol=1e-4
    )


def test_a_table_file_is_read_and_other_shapes_are_left_alone(monkeypatch):
    text = json.dumps(
        {
            "dependent_launch": {},
            "products": [[1, 48, 64, True, "gemv", [8, 512, 4, 4]], [16, 48, 64, False, "skinny", [64, 128, 2, 4, 3]]],
        }
    )
    table = linear_table.parse(text)
    assert table == {
        linear_table.Shape(1, 48, 64, True): GemvConfig(8, 512, 4, 4),
        linear_table.Shape(16, 48, 64, False): SkinnyConfig(64, 128, 2, 4, 3),
    }
    monkeypatch.setattr(linear_table, "table", lambda device, dtype: table)

    class OnGpu:
        is_cuda, device, dtype = True, None, None

        def __init__(self, tokens: int):
            self.tokens = tokens

        def __len__(self) -> int:
            return self.tokens

    weight = torch.empty(48, 64)
    assert linear_table.find(OnGpu(1), weight, silu=True) == GemvConfig(8, 512, 4, 4)
    assert linear_table.find(OnGpu(1), weight) is None
    assert linear_table.find(OnGpu(5), weight) == linear_table.find(OnGpu(16), weight) == SkinnyConfig(64, 128, 2, 4, 3)
    assert [linear_table.find(OnGpu(count), weight) for count in (4, 17, 64, 65)] == [None] * 4
    assert linear_table.find(OnGpu(16), torch.empty(48, 65)) is None


def test_every_table_file_can_be_read():
    for path in linear_table.FOLDER.glob("*.json"):
        table = linear_table.parse(path.read_text())
        assert all(shape.tokens in linear_table.BUCKETS for shape in table), path
        assert all(isinstance(config, SkinnyConfig) or shape.tokens == 1 for shape, config in table.items()), path
