"""Reading config.json: the facts that engines plan with, and refusals of what is not supported."""

from __future__ import annotations

import pytest
import torch

from raysgl.config import EngineConfig
from raysgl.distributed import single
from raysgl.models import ModelError, resolve
from raysgl.models.hf_config import parse, read
from raysgl.models.loader import load_model

LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 128256,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "rope_scaling": {
        "factor": 8.0,
        "high_freq_factor": 4.0,
        "low_freq_factor": 1.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
    "torch_dtype": "bfloat16",
    "eos_token_id": [128001, 128008],
}


def test_llama_31_8b():
    config = parse(LLAMA, {"eos_token_id": [128001, 128009]})
    assert config.num_parameters() == 8_030_261_248  # what the model card says
    assert config.kv_bytes_per_token(1, 2) == 131072
    assert config.kv_bytes_per_token(16, 2) == 131072 // 8  # eight heads on sixteen ranks: one each
    assert (config.head_dim, config.dtype, config.eos_token_ids) == (128, "bfloat16", (128001, 128008, 128009))
    assert (config.rope.theta, config.rope.kind, config.rope.params["factor"]) == (500000.0, "llama3", 8.0)


def test_old_and_new_rope_settings_mean_the_same():
    new = {key: value for key, value in LLAMA.items() if not key.startswith("rope_")}
    new["rope_parameters"] = {**LLAMA["rope_scaling"], "rope_theta": 500000.0}
    assert parse(new) == parse(LLAMA)
    old = {**LLAMA, "rope_scaling": {"type": "linear", "factor": 2.0}}
    assert parse(old).rope.kind == "linear"


def test_windows():
    assert parse({**LLAMA, "sliding_window": 10}).windows == (None,) * 32
    assert parse({**LLAMA, "architectures": ["MistralForCausalLM"], "sliding_window": 10}).windows == (10,) * 32
    qwen = {**LLAMA, "architectures": ["Qwen2ForCausalLM"], "sliding_window": 10, "max_window_layers": 30}
    assert parse(qwen).windows == (None,) * 32
    assert parse({**qwen, "use_sliding_window": True}).windows == (None,) * 30 + (10, 10)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"architectures": ["GPT2LMHeadModel"]}, "the model is GPT2LMHeadModel, but raysgl supports LlamaForCausalLM, Mistral"),
        ({"architectures": None, "model_type": "t5"}, "of unnamed architecture .model_type 't5'."),
        ({"rope_scaling": {"rope_type": "longrope"}}, "rope scaling is 'longrope', but raysgl supports default, linear"),
        ({"rope_scaling": {"rope_type": "linear"}}, "rope scaling 'linear' has no factor"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantised with gptq"),
    ],
)
def test_what_is_not_supported_is_said(change, sentence):
    with pytest.raises(ModelError, match=sentence):
        parse({**LLAMA, **change})


def test_what_is_missing_is_said(tmp_path):
    with pytest.raises(ModelError, match="config.json has no 'vocab_size'"):
        parse({key: value for key, value in LLAMA.items() if key != "vocab_size"})
    with pytest.raises(ModelError, match="has no config.json"):
        read(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ModelError, match="not valid JSON"):
        read(tmp_path)


def test_tensor_parallel_sizes():
    config = parse(LLAMA)
    for size in (1, 2, 4, 8, 16, 32):
        config.check_tp(size)
    with pytest.raises(ModelError, match="tp_size is 3, but must divide the model's 32 attention heads"):
        config.check_tp(3)
    with pytest.raises(ModelError, match="6 key/value heads"):
        parse({**LLAMA, "num_key_value_heads": 6}).check_tp(4)


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3"])
def test_counted_parameters_are_those_of_the_model(tiny_checkpoint, family):
    path = str(tiny_checkpoint(family))
    model = load_model(EngineConfig(model_path=path), resolve(path), single(), "cpu", torch.float32)
    assert sum(parameter.numel() for parameter in model.parameters()) == model.config.num_parameters()
