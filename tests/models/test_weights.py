"""Loading: what does not fit is named, and random weights are the same each time."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from raysgl.config import EngineConfig
from raysgl.distributed import TPGroup, single
from raysgl.models import ModelError, resolve
from raysgl.models.loader import choose_dtype, load_model
from tests.models.driver import Driver, Row


def load(folder, load_format="auto", seed=0, tp=None, progress=None):
    settings = EngineConfig(model_path=str(folder), load_format=load_format, random_seed=seed)
    checkpoint = resolve(str(folder), load_format=load_format)
    return load_model(settings, checkpoint, tp or single(), "cpu", torch.float32, progress)


@pytest.fixture
def folder(tiny_checkpoint, tmp_path):
    """A checkpoint that a test may spoil."""
    return shutil.copytree(tiny_checkpoint("llama"), tmp_path / "model")


def change(folder, edit):
    path = folder / "model.safetensors"
    tensors = load_file(path)
    edit(tensors)
    save_file(tensors, path)


def test_missing_tensors_are_named(folder):
    change(folder, lambda tensors: [tensors.pop(name) for name in ("model.norm.weight", "model.layers.1.mlp.up_proj.weight")])
    with pytest.raises(ModelError, match=r"lacks 2 tensors: model.layers.1.mlp.up_proj.weight, model.norm.weight, which Llama"):
        load(folder)


def test_unexpected_tensors_are_named(folder):
    change(folder, lambda tensors: tensors.update({"model.layers.0.self_attn.q_proj.bias": torch.zeros(64)}))
    with pytest.raises(ModelError, match=r"has 1 tensor: model.layers.0.self_attn.q_proj.bias, which LlamaForCausalLM"):
        load(folder)


def test_wrong_shapes_are_named(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "vocab_size": 300}))
    with pytest.raises(ModelError, match=r"model.embed_tokens.weight \[256, 64\] instead of \[300, 64\]"):
        load(folder)


def test_scales_of_keys_and_values_are_found_whatever_their_place(folder):
    layers = "model.layers"
    change(
        folder,
        lambda tensors: tensors.update(
            {
                f"{layers}.0.self_attn.k_scale": torch.tensor(0.5),
                f"{layers}.0.self_attn.v_scale": torch.tensor([0.25]),
                f"{layers}.1.self_attn.k_proj.k_scale": torch.tensor(2.0),
                f"{layers}.1.self_attn.attn.v_scale": torch.tensor(3.0),
            }
        ),
    )
    assert load(folder).kv_scales == {(0, 0): 0.5, (0, 1): 0.25, (1, 0): 2.0, (1, 1): 3.0}


def test_old_rotary_buffers_are_ignored(folder):
    before = load(folder).state_dict()
    change(folder, lambda tensors: tensors.update({"model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(8)}))
    after = load(folder).state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_progress_goes_from_nothing_to_one(folder):
    said = []
    load(folder, progress=lambda fraction, text: said.append((fraction, text)))
    fractions = [fraction for fraction, _ in said]
    assert fractions == sorted(fractions)
    assert said[-1] == (1.0, "loading weights")


def test_ranks_hold_their_parts(folder):
    whole = load_file(folder / "model.safetensors")
    parts = [load(folder, tp=TPGroup(rank, 2)).state_dict() for rank in range(2)]
    name = "model.layers.0.mlp.{}.weight"
    for rank, part in enumerate(parts):
        gate, up = part[name.format("gate_up_proj")].chunk(2)
        half = slice(48 * rank, 48 * rank + 48)
        assert torch.equal(gate, whole[name.format("gate_proj")][half])
        assert torch.equal(up, whole[name.format("up_proj")][half])
        assert torch.equal(part[name.format("down_proj")], whole[name.format("down_proj")][:, half])


def test_dummy_weights_are_seeded_and_sane(folder):
    (folder / "model.safetensors").unlink()
    first, second, other = load(folder, "dummy", 1), load(folder, "dummy", 1), load(folder, "dummy", 2)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert not torch.equal(first.lm_head.weight, other.lm_head.weight)
    logits_TV = Driver(first).prefill(Row(list(range(40))))
    assert 0.1 < logits_TV.std() < 10


def test_dummy_checkpoint_is_not_served_by_mistake(folder):
    with pytest.raises(ModelError, match="without its weights"):
        load_model(EngineConfig(model_path=str(folder)), resolve(str(folder), weights=False), single(), "cpu", torch.float32)


def test_dtype_setting(folder):
    config = resolve(str(folder)).config()
    assert choose_dtype("auto", config, torch.device("cpu")) == torch.float32
    assert choose_dtype("bfloat16", config, torch.device("cpu")) == torch.bfloat16
    assert choose_dtype("auto", config, torch.device("cuda")) == torch.float32  # what this checkpoint says
