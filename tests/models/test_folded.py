"""Layers whose norms, SiLU and additions are folded into their linear layers give the logits of those whose are not."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton")

from raysgl.config import EngineConfig
from raysgl.distributed import single
from raysgl.kernels import linear_table
from raysgl.kernels.attention import KVCache, create_backend
from raysgl.kernels.triton import ops
from raysgl.kernels.triton.gemv import GemvConfig
from raysgl.kernels.triton.skinny import SkinnyConfig
from raysgl.models import llama as llama_module
from raysgl.models import resolve
from raysgl.models.loader import load_model
from tests.conftest import have_gpu
from tests.models.driver import Driver, Row

DEVICE = torch.device("cuda" if have_gpu() else "cpu")


def triton_driver(path: str) -> Driver:
    model = load_model(EngineConfig(model_path=path), resolve(path), single(), DEVICE, torch.float32)
    driver = Driver(model, num_pages=32)
    config = model.config
    cache = KVCache(config.num_layers, 32, 16, config.num_kv_heads, config.head_dim, torch.float32, DEVICE)
    driver.attention = create_backend("triton", cache, config.num_heads, config.windows)
    return driver


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
def test_folded_layers_give_the_same_logits(family, tiny_checkpoint, monkeypatch):
    monkeypatch.setattr(llama_module, "triton_kernels", lambda device, dtype: ops)
    path, logits = str(tiny_checkpoint(family)), {}
    folds = []
    inner = llama_module.LlamaLayer.folded
    monkeypatch.setattr(llama_module.LlamaLayer, "folded", lambda *args: (folds.append(1), inner(*args)))
    for folded in (False, True):

        def find(x, weight, silu=False, folded=folded):
            if not folded or weight.shape[0] == weight.shape[1]:  # some products stay with the library
                return None
            return GemvConfig(8, 32, 4, 2) if len(x) == 1 else SkinnyConfig(16, 32, 2, 4, 2)

        monkeypatch.setattr(linear_table, "find", find)
        driver = triton_driver(path)
        row, other = Row(list(range(5, 25))), Row(list(range(40, 70)))
        logits[folded] = [driver.step([(row, 19), (other, 30)]), driver.step([(row, 1)])]
    for got, want in zip(logits[True], logits[False], strict=True):
        torch.testing.assert_close(got, want, atol=2e-4, rtol=1e-3)
    assert len(folds) == 2 * driver.model.config.num_layers
