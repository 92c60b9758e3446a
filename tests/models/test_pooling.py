"""What a checkpoint's files and the settings say of a model that makes numbers of texts. No torch."""

from __future__ import annotations

import json

import pytest

from raysgl.config import EngineConfig
from raysgl.models import ModelError, hf_config
from raysgl.models.pooling import pooling_spec

BERT = {
    "vocab_size": 30,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 130,
}
LLAMA = {**BERT, "rms_norm_eps": 1e-6}


@pytest.fixture
def spec(tmp_path):
    """spec(config.json's fields, settings, **other files) -> PoolingSpec or None"""

    def make(config, settings=None, **files):
        (tmp_path / "config.json").write_text(json.dumps(config))
        for name, content in files.items():
            path = tmp_path / name.replace("__", "/")
            path.parent.mkdir(exist_ok=True)
            path.with_suffix(".json").write_text(json.dumps(content))
        return pooling_spec(tmp_path, EngineConfig(model_path="x", **(settings or {})))

    return make


def bert(kind="BertModel", **fields):
    return {"architectures": [kind], **BERT, **fields}


def llama(kind="LlamaForCausalLM", **fields):
    return {"architectures": [kind], **LLAMA, **fields}


MODULES = [{"path": "", "type": "sentence_transformers.models.Transformer"}, {"path": "p", "type": "a.Pooling"}]


def test_pooling_modes(spec):
    for name, pooling in (("cls_token", "cls"), ("mean_tokens", "mean"), ("lasttoken", "last")):
        found = spec(bert(), modules=MODULES, p__config={f"pooling_mode_{name}": True, "pooling_mode_max_tokens": False})
        assert (found.pooling, found.normalize) == (pooling, False)
    assert spec(bert(), modules=MODULES, p__config={"pooling_mode": "mean"}).pooling == "mean"
    two = {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True}
    for config in (two, {"pooling_mode_max_tokens": True}, {}):
        with pytest.raises(ModelError, match="set pooling to last, mean or cls"):
            spec(bert(), modules=MODULES, p__config=config)
        assert spec(bert(), {"pooling": "mean"}, modules=MODULES, p__config=config).pooling == "mean"


def test_modules_that_are_not_there(spec):
    with pytest.raises(ModelError, match="has Dense"):
        spec(bert(), modules=[*MODULES, {"path": "d", "type": "sentence_transformers.models.Dense"}])


def test_who_generates(spec):
    assert spec(llama()) is None
    assert spec(llama(), {"is_embedding": True}).task == "embed"
    assert spec(llama("LlamaModel")).pooling == "last"
    assert spec(llama(), modules=MODULES, p__config={"pooling_mode_lasttoken": True}).task == "embed"
    assert spec(llama(), {"is_embedding": False}, modules=MODULES) is None
    with pytest.raises(ModelError, match="BertModel cannot generate"):
        spec(bert(), {"is_embedding": False})


def test_settings_that_contradict_the_model(spec):
    for setting in ({"pooling": "mean"}, {"matryoshka_dimensions": [4]}, {"allow_auto_truncate": True}):
        with pytest.raises(ModelError, match=f"{next(iter(setting))} is .* set is_embedding"):
            spec(llama(), setting)
    with pytest.raises(ModelError, match="leave it at auto"):
        spec(bert("BertForSequenceClassification"), {"pooling": "mean"})
    with pytest.raises(ModelError, match="raise num_replicas"):
        spec(bert(), {"tp_size": 2})


@pytest.mark.parametrize(
    ("fields", "activation", "labels"),
    [
        ({}, "softmax", 2),
        ({"id2label": {"0": "no"}}, "sigmoid", 1),
        ({"id2label": {"0": "a", "1": "b"}, "problem_type": "multi_label_classification"}, "sigmoid", 2),
        ({"id2label": {"0": "no"}, "problem_type": "regression"}, "identity", 1),
        (
            {"id2label": {"0": "x"}, "sentence_transformers": {"activation_fn": "torch.nn.modules.linear.Identity"}},
            "identity",
            1,
        ),
    ],
)
def test_classifiers(spec, fields, activation, labels):
    found = spec(bert("BertForSequenceClassification", **fields))
    assert (found.task, found.activation, found.size, found.pairs) == ("classify", activation, labels, labels == 1)
    assert len(found.labels) == labels


def test_roberta_positions_begin_behind_the_padding(spec):
    assert spec(bert("XLMRobertaModel", pad_token_id=1)).max_length == 128


def test_dimensions(spec):
    assert spec(bert()).dimensions == ()
    assert spec(bert(is_matryoshka=True)).dimensions is None
    assert spec(bert(matryoshka_dimensions=[16, 8])).dimensions == (8, 16)
    assert spec(bert(matryoshka_dimensions=[16]), {"matryoshka_dimensions": [4]}).dimensions == (4,)
    with pytest.raises(ModelError, match="has 64, but must have numbers from 1 to the model's 32"):
        spec(bert(), {"matryoshka_dimensions": [64]})


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"hidden_act": "mish"}, "activation is 'mish'"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type"),
        ({"is_decoder": True}, "is_decoder"),
    ],
)
def test_encoders_of_another_make(spec, fields, why):
    with pytest.raises(ModelError, match=why):
        spec(bert(**fields))


def test_modernbert_s_layers_in_the_older_form():
    """As the hub's checkpoints say it; the newer form is compared with transformers."""
    config = {**BERT, "num_hidden_layers": 4, "global_rope_theta": 9e4, "local_rope_theta": 1e4, "local_attention": 128}
    found = hf_config.parse({"architectures": ["ModernBertModel"], **config, "global_attn_every_n_layers": 3})
    assert found.rope_thetas == (9e4, 1e4, 1e4, 9e4) and found.windows == (None, 65, 65, None)
