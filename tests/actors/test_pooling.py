"""A model that makes vectors (two replicas) and one that scores, beside one that generates: everything through HTTP on a
real local Ray."""

from __future__ import annotations

import json

import numpy as np
import pytest

from tests.models.poolers import Reference, save, sentence_transformers

pytestmark = pytest.mark.cluster


def tokenizer(folder) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

    characters = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={char: i for i, char in enumerate(characters)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    cls, sep = characters[0], characters[1]
    backend.post_processor = processors.BertProcessing((sep, 1), (cls, 0))
    backend.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"cls_token": cls, "sep_token": sep}))


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    made = {}
    for name, kind, settings in (
        ("embed", "BertModel", {}),
        ("score", "BertForSequenceClassification", {"num_labels": 1}),
    ):
        made[name] = save(tmp_path_factory.mktemp(name), kind, **settings)
        tokenizer(made[name])
    sentence_transformers(made["embed"])
    return made


@pytest.fixture(scope="module")
def app(launch, folders):
    app = launch(
        "numbers",
        {
            "embed": {"model_path": str(folders["embed"]), "num_replicas": 2, "max_total_tokens": None},
            "score": {"model_path": str(folders["score"]), "max_total_tokens": None},
            "tiny": {},
        },
    )
    app.wait_serving(2, "embed")
    return app


def ids_of(app, text: str, model: str = "embed") -> list[int]:
    return app.post("/tokenize", {"model": model, "prompt": text})["tokens"]


def test_vectors(app, folders):
    texts = [f"text number {i} " * (i % 5 + 1) for i in range(40)]
    answer = app.post("/v1/embeddings", {"model": "embed", "input": texts})
    reference = Reference(folders["embed"], "BertModel")
    for text, entry in zip(texts, answer["data"], strict=True):
        expected = reference.hidden(ids_of(app, text)).mean(0).numpy()
        np.testing.assert_allclose(entry["embedding"], expected / np.linalg.norm(expected), atol=1e-5)
    through_serve = app.post("/v1/embeddings", {"model": "embed", "input": texts[0]}, url=app.proxy_url)
    np.testing.assert_allclose(through_serve["data"][0]["embedding"], answer["data"][0]["embedding"], atol=1e-6)


def test_scores(app, folders):
    answer = app.post(
        "/v1/rerank", {"model": "score", "query": "who", "documents": ["a", "bcd", "ef"], "use_activation": False}
    )
    reference = Reference(folders["score"], "BertForSequenceClassification")
    for result in answer["results"]:
        first, second = ids_of(app, "who", "score"), ids_of(app, result["document"]["text"], "score")
        expected = reference.numbers(first + second[1:], len(first))[0]
        assert result["relevance_score"] == pytest.approx(float(expected), abs=1e-4)


def test_label_scores_are_the_next_token_s_probabilities(app):
    body = {"model": "tiny", "query": [5, 6, 7], "items": [[8], [9, 10]], "label_token_ids": [3, 4]}
    scores = app.post("/v1/score", body)["scores"]
    for item, row in zip(body["items"], scores, strict=True):
        generated = app.post(
            "/generate",
            {"model": "tiny", "input_ids": [5, 6, 7, *item], "return_logprob": True, "token_ids_logprob": [3, 4],
             "sampling_params": {"max_new_tokens": 1}},
        )  # fmt: skip
        expected = [np.exp(entry[0]) for entry in generated["meta_info"]["output_token_ids_logprobs"][0]]
        np.testing.assert_allclose(row, expected, rtol=1e-5)


def test_load_and_health(app):
    loads = json.loads(app.get("/v1/loads?model=embed")[1])["loads"]
    assert len(loads) == 2 and all(load["num_running_reqs"] == 0 for load in loads)
    assert app.get("/health_generate", 30)[0] == 200
    assert app.post("/configure_logging", {"log_level": "info"})["log_level"] == "info"
