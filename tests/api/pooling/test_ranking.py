"""Rerank, score and classify, by every kind of model."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from raysgl.api.chat_template import ChatTemplate
from raysgl.api.pooling.activation import softmax

from .conftest import CLS, CONTEXT, EMBED, LABELS, SCORE, SEP, numbers_of

DOCUMENTS = ["one", "two", "three", "four"]
RERANKER = Path(__file__).parents[3] / "examples" / "qwen3_reranker.jinja"


def bare(text: str) -> list[int]:
    return [4 + ord(c) - ord(" ") for c in text.lower()]


def pair(first: str, second: str) -> tuple[list[int], int]:
    ids = [CLS, *bare(first), SEP, *bare(second), SEP]
    return ids, len(first) + 2


def score_of(first: str, second: str) -> float:
    ids, segment = pair(first, second)
    return float(numbers_of(ids, segment, 1)[0])


def sigmoid(value: float) -> float:
    return 1 / (1 + np.exp(-value))


async def post(server, path, body):
    async with server.client() as client:
        answer = await client.post(path, json=body)
    return answer.status_code, answer.json()


async def test_rerank_with_a_cross_encoder(pooling_server):
    server = pooling_server(SCORE)
    documents = [*DOCUMENTS[:3], {"text": DOCUMENTS[3]}]
    status, answer = await post(server, "/v1/rerank", {"query": "Number?", "documents": documents})
    assert status == 200
    assert [(s.input_ids, s.settings["first_segment"]) for s in server.backend.streams] == [
        pair("number?", d) for d in DOCUMENTS
    ]
    expected = {i: sigmoid(score_of("number?", document)) for i, document in enumerate(DOCUMENTS)}
    assert [result["index"] for result in answer["results"]] == sorted(expected, key=lambda i: -expected[i])
    for result in answer["results"]:
        assert result["relevance_score"] == pytest.approx(expected[result["index"]])
        assert result["document"] == {"text": DOCUMENTS[result["index"]]}
    assert answer["usage"]["total_tokens"] == sum(len(pair("number?", document)[0]) for document in DOCUMENTS)


async def test_rerank_options(pooling_server):
    server = pooling_server(SCORE)
    body = {"query": "q", "documents": DOCUMENTS, "top_n": 2, "return_documents": False, "use_activation": False}
    for path in ("/rerank", "/v2/rerank"):
        _, answer = await post(server, path, body)
        best = max(range(4), key=lambda i: score_of("q", DOCUMENTS[i]))
        assert answer["results"][0] == {"index": best, "relevance_score": pytest.approx(score_of("q", DOCUMENTS[best]))}
        assert len(answer["results"]) == 2


async def test_pairs_that_are_too_long(pooling_server):
    server = pooling_server(SCORE)
    long = {"query": "q" * 20, "documents": ["d" * 20]}
    status, answer = await post(server, "/v1/rerank", long)
    assert status == 400 and answer["error"]["param"] == "documents" and "43 tokens" in answer["error"]["message"]
    for query, document, kept in ((20, 20, (14, 15)), (3, 90, (3, 26)), (90, 3, (26, 3))):
        await post(server, "/v1/rerank", {"query": "q" * query, "documents": ["d" * document], "truncate_prompt_tokens": -1})
        stream = server.backend.last
        assert (stream.input_ids, stream.settings["first_segment"]) == pair("q" * kept[0], "d" * kept[1])
        assert len(stream.input_ids) == CONTEXT


async def test_rerank_and_score_with_vectors(pooling_server):
    server = pooling_server(EMBED)
    vectors = {text: numbers_of([CLS, *bare(text), SEP], 0, 4) for text in ("q", *DOCUMENTS)}
    _, answer = await post(server, "/v1/rerank", {"query": "q", "documents": [*DOCUMENTS, "one"]})
    assert len(server.backend.streams) == 5  # a text that is there twice is computed once
    for result in answer["results"]:
        expected = vectors["q"] @ vectors[[*DOCUMENTS, "one"][result["index"]]]
        assert result["relevance_score"] == pytest.approx(expected, abs=1e-6)
    _, answer = await post(server, "/v1/score", {"text_1": ["one", "two"], "text_2": ["two", "two"]})
    assert [entry["score"] for entry in answer["data"]] == [
        pytest.approx(vectors["one"] @ vectors["two"], abs=1e-6),
        pytest.approx(1),
    ]


async def test_score_pairs_texts(pooling_server):
    server = pooling_server(dataclasses.replace(SCORE, activation="identity"))
    for first, second, pairs in (
        ("a", "b", [("a", "b")]),
        ("a", ["b", "c"], [("a", "b"), ("a", "c")]),
        (["b", "c"], "a", [("b", "a"), ("c", "a")]),
        (["a", "b"], ["c", "d"], [("a", "c"), ("b", "d")]),
    ):
        _, answer = await post(server, "/score", {"text_1": first, "text_2": second})
        assert [entry["score"] for entry in answer["data"]] == pytest.approx([score_of(*texts) for texts in pairs])
    status, answer = await post(server, "/v1/score", {"text_1": ["a", "b"], "text_2": ["c", "d", "e"]})
    assert (status, answer["error"]["param"]) == (400, "text_2")


async def test_classify(pooling_server):
    server = pooling_server(LABELS)
    _, answer = await post(server, "/v1/classify", {"input": ["ab", "c"]})
    for entry, text in zip(answer["data"], ["ab", "c"], strict=True):
        expected = softmax(numbers_of([CLS, *bare(text), SEP], 0, 3)[None].astype(float))[0]
        assert entry["probs"] == pytest.approx(expected.tolist())
        assert entry["label"] == LABELS.labels[expected.argmax()] and entry["num_classes"] == 3
    _, answer = await post(server, "/classify", {"input": "ab", "use_activation": False})
    numbers = numbers_of([CLS, *bare("ab"), SEP], 0, 3).tolist()
    assert answer["data"][0]["probs"] == pytest.approx(numbers)
    _, answer = await post(server, "/classify", {"text": "ab"})  # SGLang's
    assert answer["embedding"] == pytest.approx(numbers)


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/v1/rerank", {"documents": ["a"]}, "query"),
        ("/v1/rerank", {"query": "a", "documents": []}, "documents"),
        ("/v1/rerank", {"query": "a", "documents": [{"image": "x"}]}, "documents.0.text"),
        ("/v1/rerank", {"query": "a", "documents": ["b"], "top_n": -1}, "top_n"),
        ("/v1/rerank", {"query": "a", "documents": ["b"], "instruct": "x"}, "instruct"),
        ("/v1/rerank", {"query": "a", "documents": ["b"], "truncate_prompt_tokens": 3}, "truncate_prompt_tokens"),
        ("/v1/score", {"text_1": "a"}, "text_2"),
        ("/v1/score", {"text_1": [], "text_2": "a"}, "text_1"),
        ("/v1/score", {"query": "a", "items": ["b"], "label_token_ids": [1], "model": "score"}, "model"),
    ],
)
async def test_errors_name_the_field(pooling_server, path, body, param):
    status, answer = await post(pooling_server(SCORE), path, body)
    assert (status, answer["error"]["param"]) == (400, param)


async def test_models_of_the_wrong_kind(pooling_server):
    server = pooling_server(EMBED, LABELS, generator=True)
    for path, body, hint in (
        ("/v1/rerank", {"model": "classify", "query": "a", "documents": ["b"]}, "use /v1/classify"),
        ("/v1/rerank", {"model": "tiny", "query": "a", "documents": ["b"]}, "set chat_template"),
        ("/v1/classify", {"model": "embed", "input": "a"}, "use /v1/embeddings"),
        ("/v1/classify", {"model": "tiny", "input": "a"}, "use /v1/chat/completions"),
    ):
        status, answer = await post(server, path, body)
        assert status == 400 and answer["error"]["param"] == "model" and hint in answer["error"]["message"]


# ------------------------------------------------------------------ models that generate


def logprob_of(ids: list[int], label: int) -> float:
    return -((sum(ids) + 3 * label) % 11) / 4 - 0.1


@pytest.fixture
def generator(server):
    """A server of a model whose tokens' log probabilities are `logprob_of`."""

    def script(ids, sampling, index):
        from ..fake_backend import Script

        made.backend.logprob = lambda token, top: _entry(token, ids, sampling)
        return Script([[5], [6]])

    made = server(script)
    return made


def _entry(token, ids, sampling):
    from raysgl.messages import TokenLogprob

    return TokenLogprob(token, -1.0, asked=[logprob_of(ids, label) for label in sampling.token_ids_logprob])


async def test_label_scores(generator):
    """SGLang's /v1/score. (One prompt at a time: the fake engine's log probabilities are those of the last one.)"""
    body = {"query": [5, 6], "items": [[7]], "label_token_ids": [8, 9, 10]}
    for first, ids in ((False, [5, 6, 7]), (True, [7, 5, 6])):
        _, answer = await post(generator, "/v1/score", {**body, "item_first": first})
        assert generator.backend.last.input_ids == ids
        assert answer["scores"] == [pytest.approx([np.exp(logprob_of(ids, label)) for label in (8, 9, 10)])]
    _, answer = await post(generator, "/v1/score", {**body, "apply_softmax": True})
    assert sum(answer["scores"][0]) == pytest.approx(1) and answer["object"] == "scoring"
    await post(generator, "/v1/score", {"query": "The ", "items": "fox", "label_token_ids": [1]})
    tokenizer = generator.backend.models["tiny"].tokenizer
    assert generator.backend.last.input_ids == tokenizer.encode("The fox")
    assert generator.backend.last.sampling.max_new_tokens == 1
    for change, param in (
        ({"label_token_ids": []}, "label_token_ids"),
        ({"label_token_ids": [10**6]}, "label_token_ids"),
        ({"items": ["a"]}, "items"),
        ({"query": 5}, "query"),
        ({"items": [[7] * 512]}, "items"),
    ):
        status, answer = await post(generator, "/v1/score", body | change)
        assert (status, answer["error"]["param"]) == (400, param)


async def test_rerank_with_a_model_that_says_yes_or_no(generator, monkeypatch):
    model = generator.backend.models["tiny"]
    model.chat_template = ChatTemplate(RERANKER.read_text())
    model.context_length = 4096
    tokens = {"no": [100], "yes": [101]}
    encode = model.tokenizer.encode
    monkeypatch.setattr(model.tokenizer, "encode", lambda text, *a, **k: tokens.get(text) or encode(text, *a, **k))
    _, answer = await post(generator, "/v1/rerank", {"query": "Who?", "documents": ["me"], "instruct": "Find people"})
    ids = generator.backend.last.input_ids
    prompt = model.tokenizer.decode(ids, False)
    assert "<Instruct>: Find people\n<Query>: Who?\n<Document>: me<|im_end|>\n" in prompt
    assert prompt.startswith("<|im_start|>system\nJudge") and prompt.endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")
    no, yes = (np.exp(logprob_of(ids, label)) for label in (100, 101))
    assert answer["results"][0]["relevance_score"] == pytest.approx(yes / (yes + no))
    await post(generator, "/v1/rerank", {"query": "Who?", "documents": ["me"]})
    assert "<Instruct>: Given a web search query" in model.tokenizer.decode(generator.backend.last.input_ids)
