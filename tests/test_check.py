"""`raysgl check`: sizes, what is asked of Ray, and what would fail at start."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import yaml

from raysgl.check import CheckError, Machine, describe, plan
from raysgl.config import AppConfig

CPU = Machine(host_memory=8 * 2**30)
GPU = Machine(host_memory=64 * 2**30, gpu_memory=(80 * 2**30,) * 8)

LLAMA_8B = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 128256,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 131072,
    "rope_theta": 500000.0,
    "rms_norm_eps": 1e-5,
    "torch_dtype": "bfloat16",
    "eos_token_id": 128001,
}


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "Llama-8B"
    path.mkdir()
    (path / "config.json").write_text(json.dumps(LLAMA_8B))
    return path


def app(folder, replicas=1, **engine) -> AppConfig:
    engine = {"model_path": str(folder), "load_format": "dummy"} | engine
    return AppConfig.model_validate({"models": [{"engine": engine, "num_replicas": replicas}]})


def test_sizes_of_a_known_model(folder):
    (model,) = plan(app(folder, tp_size=2, max_total_tokens=100_000), GPU).models
    assert model.hf.num_parameters() == 8_030_261_248  # what the model card says
    assert (model.device, model.dtype, model.gpus) == ("cuda", "bfloat16", 2)
    assert model.weights == 8_030_261_248
    assert model.kv_per_token == 32 * 2 * 4 * 128 * 2
    assert model.kv_tokens == 100_000
    assert plan(app(folder), GPU).models[0].kv_tokens is None


def test_a_machine_without_gpu_means_cpu_and_float32(folder):
    (model,) = plan(app(folder), Machine(host_memory=2**40)).models
    assert (model.device, model.dtype, model.gpus, model.weights) == ("cpu", "float32", 0, 4 * 8_030_261_248)


@pytest.mark.parametrize(
    ("machine", "engine", "said"),
    [
        (CPU, {"device": "cuda"}, "models.0.engine.device: is 'cuda', but this machine has no NVIDIA GPU"),
        (CPU, {}, "models.0.engine.tp_size: each shard needs 29.9 GiB"),
        (GPU, {"max_total_tokens": 10**6}, "models.0.engine.max_total_tokens: each shard needs 137.0 GiB"),
        (GPU, {"tp_size": 3}, "models.0.engine: tp_size is 3, but must divide the model's 32 attention heads"),
        (GPU, {"context_length": 200_000}, "models.0.engine.context_length: is 200000, but must be at most the model's 131072"),
        (GPU, {"chat_template": "/no/such.jinja"}, "models.0.engine.chat_template: '/no/such.jinja' is not a file"),
        (GPU, {"model_path": "/no/such/model"}, "models.0.engine: model_path '/no/such/model' does not exist"),
    ],
)
def test_what_would_fail_at_start(folder, machine, engine, said):
    with pytest.raises(CheckError) as caught:
        plan(app(folder, **engine), machine)
    assert any(problem.startswith(said) for problem in caught.value.problems), caught.value.problems


def test_description(folder):
    text = describe(plan(app(folder, replicas=4, tp_size=2), GPU))
    for part in (
        "http://127.0.0.1:30000/v1",
        "model          Llama-8B",
        "8,030.3 M parameters, context 131072 tokens",
        "cuda, bfloat16",
        "4 x 2 shards, placed STRICT_PACK",
        "1 GPU and 1 CPU, 7.5 GiB of weights",
        "8 GPUs and 8 CPUs in all",
        "8 GPU of 80.0 GiB",
    ):
        assert part in text


def test_the_command_needs_neither_ray_nor_torch(folder, tmp_path):
    config = tmp_path / "config.yaml"
    config.write_text(
        yaml.safe_dump({"models": [{"engine": {"model_path": str(folder), "load_format": "dummy", "tp_size": 4}}]})
    )
    script = (
        "import sys, raysgl.check\n"
        "from raysgl.config_file import load\n"
        f"raysgl.check.describe(raysgl.check.plan(load({str(config)!r}), raysgl.check.Machine(2**40)))\n"
        "print([name for name in ('ray', 'torch', 'transformers') if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.strip() == "[]"
