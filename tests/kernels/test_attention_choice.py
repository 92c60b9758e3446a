"""Which backend runs which step: by setting, by what is refused, by what was measured."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch

from raysgl.kernels.attention import AttentionLayer, KVCache, StepAttention, create_attention, registry, table
from raysgl.kernels.attention.table import ranking
from tests.kernels.triton.test_backend import make_batch

TIMES = [
    ["decode", "256 x 384", {"triton": 100.0, "flash_attn": 110.0, "flashinfer": 90.0}],
    ["decode", "256 x 1152", {"triton": 400.0, "flash_attn": 380.0, "flashinfer": 360.0}],
    ["prompts", "1 x 0+4096", {"triton": 500.0, "flash_attn": 300.0}],
    ["mixed", "256 x 384 and 2 x 0+1024", {"triton": 300.0, "flash_attn": 200.0}],
]
TABLE = json.dumps({"model": {"head_dim": 128}, "times": TIMES})


def test_ranking_is_by_the_mean_slowness_over_all_shapes():
    decode = ranking(TABLE, "decode")
    assert [rank.backend for rank in decode] == ["flashinfer", "triton", "flash_attn"]
    assert decode[0].slowness == 1.0 and decode[1].slowness == pytest.approx(((100 / 90) * (400 / 360)) ** 0.5)
    assert [rank.backend for rank in ranking(TABLE, "prefill")] == ["flash_attn", "triton"]
    # A backend that failed at a shape is not known to be good at it.
    assert [
        rank.backend for rank in ranking(json.dumps({"times": [*TIMES, ["decode", "1 x 1", {"triton": 1.0}]]}), "decode")
    ] == ["triton"]


def test_auto_takes_the_fastest_that_does_not_refuse():
    choice = registry._automatic("decode", {}, TABLE, "h100.json")
    assert choice.backend == "flashinfer" and "by h100.json" in choice.why and "triton 1.11" in choice.why
    choice = registry._automatic("decode", {"flashinfer": "is not compiled"}, TABLE, "h100.json")
    assert choice.backend == "triton" and "flashinfer is not compiled" in choice.why
    assert registry._automatic("prefill", {}, TABLE, "h100.json").backend == "flash_attn"
    assert registry._automatic("prefill", {}, "", "").backend == "flash_attn"
    assert registry._automatic("prefill", {"flash_attn": "is not installed"}, "", "").backend == "triton"
    assert registry._automatic("prefill", dict.fromkeys(registry.PREFERRED, "no"), "", "").backend == "torch"


def test_numbers_of_decode_rows_that_differ_have_backends_of_their_own():
    times = [
        ["decode", "1 x 256", {"triton": 6.0, "flash_attn": 7.0}],
        ["decode", "64 x 1200", {"triton": 150.0, "flash_attn": 118.0}],
        ["decode", "256 x 384", {"triton": 156.0, "flash_attn": 157.0}],
    ]
    text = json.dumps({"model": {"head_dim": 128}, "times": times})
    choice = registry._automatic("decode", {}, text, "h100.json")
    # One percent is not worth another set of kernels.
    assert choice.backend == "flash_attn" and choice.at == ((1, "triton"), (64, "flash_attn"), (256, "flash_attn"))
    assert "1 rows: triton" in choice.why
    assert registry._automatic("decode", {"triton": "no"}, text, "h100.json").at == (
        (1, "flash_attn"),
        (64, "flash_attn"),
        (256, "flash_attn"),
    )
    step = StepAttention("prompts", {"triton": "few", "flash_attn": "many"}, choice, SimpleNamespace(), "")
    assert [step.decode_for(rows) for rows in (1, 2, 8, 9, 300)] == ["few", "few", "few", "many", "many"]


def test_tables_that_come_with_the_package_can_be_read():
    for path in table.FOLDER.glob("*.json"):
        assert json.loads(path.read_text())["model"]["head_dim"]
        for kind in table.KINDS:
            assert {rank.backend for rank in ranking(path.read_text(), kind)} <= set(registry.BACKENDS)


def test_decode_steps_and_steps_with_prompts_go_to_their_own_backends():
    pytest.importorskip("triton")
    cache = KVCache(1, 20, 16, 2, 64, torch.float32, "cpu")
    attention = create_attention("torch", "triton", cache, 4)
    assert "prefill torch (as set), decode triton (as set)" in attention.why
    assert attention.prefill is not attention.decode_for(1)
    random = torch.Generator().manual_seed(0)
    results = []
    for query_lens, kv_lens in (([3, 5], [3, 5]), ([1, 1], [4, 6]), ([1, 2], [5, 8])):
        batch = make_batch(query_lens, kv_lens, "cpu")
        batch.page_table_SP = torch.tensor([[1], [2]], dtype=torch.int32)
        q, k, v = torch.randn(sum(query_lens), 8, 64, generator=random).split([4, 2, 2], 1)
        attention.plan(batch)
        assert attention.has_attend == (len(query_lens) == batch.num_decode)
        results.append((batch, q, k, v, attention.forward(q, k, v, AttentionLayer(0, 0.125))))
    alone = create_attention("torch", "torch", KVCache(1, 20, 16, 2, 64, torch.float32, "cpu"), 4)
    assert alone.prefill is alone.decode_for(1)
    for batch, q, k, v, got in results:
        alone.plan(batch)
        torch.testing.assert_close(got, alone.forward(q, k, v, AttentionLayer(0, 0.125)), atol=1e-4, rtol=1e-4)


def test_on_a_cpu_auto_is_torch():
    attention = create_attention("auto", "auto", KVCache(1, 1, 16, 1, 64, torch.float32, "cpu"), 1)
    assert attention.why == "prefill torch (auto, on cpu in float32), decode torch (auto, on cpu in float32)"
