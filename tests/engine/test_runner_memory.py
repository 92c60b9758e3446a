"""How the KV pool is sized, without a model."""

from __future__ import annotations

import pytest
import torch

from raysgl.config import EngineConfig
from raysgl.engine import memory
from raysgl.engine.defaults import resolve_defaults
from raysgl.engine.memory import GIB, Budget, pool_pages
from raysgl.models import ModelError


def pages(budget: Budget, page_bytes: int = 1024, context: int = 4096, **settings) -> int:
    config = EngineConfig(model_path="m", **settings)
    return pool_pages(config, resolve_defaults(config, "cpu", context), page_bytes, budget)


def test_the_pool_takes_its_budget_less_the_padding_page():
    assert pages(Budget(100 * 1024, 200 * 1024, "memory")) == 99


def test_it_is_never_larger_than_can_be_used():
    huge = Budget(100 * GIB, 200 * GIB, "memory")
    assert pages(huge, max_running_requests=3) == 3 * 4096 // 16
    assert pages(huge, max_running_requests=3, context_length=17) == 3 * 2


def test_max_total_tokens_may_exceed_the_budget_but_not_the_ceiling():
    budget = Budget(100 * 1024, 200 * 1024, "main memory")
    assert pages(budget, max_total_tokens=150 * 16) == 150
    assert pages(budget, max_total_tokens=150 * 16 + 15) == 150
    with pytest.raises(ModelError, match=r"max_total_tokens is 3200, .* of main memory are left; set at most 3184"):
        pages(budget, max_total_tokens=200 * 16)


def test_no_room_says_what_to_change():
    with pytest.raises(ModelError, match="raise mem_fraction_static"):
        pages(Budget(-5, 200 * 1024, "memory"))
    with pytest.raises(ModelError, match="lower chunked_prefill_size or max_running_requests"):
        pages(Budget(-5, -5, "memory"))


def test_cpu_budget(monkeypatch):
    monkeypatch.setattr(memory, "available_ram", lambda: 8 * GIB)
    config = EngineConfig(model_path="m")
    assert memory.cpu_budget(config, GIB) == Budget(2 * GIB, int(7.2 * GIB), "main memory")
    assert memory.cpu_budget(EngineConfig(model_path="m", tp_size=2), GIB).default == GIB
    half = memory.cpu_budget(EngineConfig(model_path="m", mem_fraction_static=0.5), GIB)
    assert half.default == int(3.5 * GIB)
    monkeypatch.setattr(memory, "available_ram", lambda: 100 * GIB)
    assert memory.cpu_budget(config, GIB).default == 4 * GIB


def test_a_containers_limit_counts(tmp_path, monkeypatch):
    limit, used = tmp_path / "max", tmp_path / "current"
    monkeypatch.setattr(memory, "CGROUP_FILES", ((str(limit), str(used)), (str(tmp_path / "none"), str(used))))
    without = memory.available_ram()
    limit.write_text("max\n")
    used.write_text("1000\n")
    assert memory.available_ram() > without / 2
    limit.write_text(f"{1000 + 2**20}\n")
    assert memory.available_ram() == 2**20


def test_shared_weights_count_once():
    linear = torch.nn.Linear(4, 8, bias=False)
    tied = torch.nn.ModuleList([linear, torch.nn.Linear(4, 8, bias=False)])
    tied[1].weight = linear.weight
    assert memory.weight_bytes(tied) == 4 * 8 * 4


def test_out_of_memory_says_what_was_found_and_what_to_change(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (GIB, 80 * GIB))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 60 * GIB)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a GPU")
    with pytest.raises(ModelError) as caught, memory.explaining("loading", "raise tp_size", torch.device("cuda:0")):
        raise torch.OutOfMemoryError("CUDA out of memory")
    assert str(caught.value) == (
        "out of memory while loading: of 80.00 GiB on a GPU this shard holds 60.00 GiB, others hold 19.00 GiB, "
        "and 1.00 GiB are left; raise tp_size"
    )
    with pytest.raises(RuntimeError, match="something else"), memory.explaining("loading", "", torch.device("cpu")):
        raise RuntimeError("something else")


def test_the_report_names_what_there_is():
    assert str(memory.MemoryReport(2 * GIB, GIB, 3 * GIB, 1000, GIB // 2)) == (
        "weights 2.00 GiB, activations 1.00 GiB, CUDA graphs 0.50 GiB, KV cache 3.00 GiB (1,000 tokens)"
    )
    assert str(memory.MemoryReport(2 * GIB, 0, 3 * GIB, 1000)) == "weights 2.00 GiB, KV cache 3.00 GiB (1,000 tokens)"
