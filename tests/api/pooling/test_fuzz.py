"""Whatever the body is, the answer is never a 500, and a 4xx has the error shape."""

from __future__ import annotations

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from raysgl.api.pooling import protocol
from raysgl.api.served_model import ServedModel

from ..conftest import Server
from ..test_fuzz import call, texts, values
from .conftest import CONTEXT, EMBED, LABELS, SCORE, PoolingBackend

some = texts | st.lists(texts, max_size=3)
inputs = some | st.lists(st.integers(-1, 110), max_size=4) | st.lists(st.lists(st.integers(-1, 110), max_size=3), max_size=2)
documents = st.lists(texts | st.fixed_dictionaries({"text": texts}) | values, max_size=3)
SENSIBLE = {
    "input": inputs,
    "text": some,
    "input_ids": inputs,
    "query": texts | st.lists(st.integers(0, 110), max_size=3),
    "documents": documents,
    "items": inputs,
    "label_token_ids": st.lists(st.integers(-1, 110), max_size=3),
    "text_1": some,
    "text_2": some,
    "encoding_format": st.sampled_from(["float", "base64", "x"]),
    "dimensions": st.integers(-1, 5),
    "truncate_prompt_tokens": st.integers(-2, 40),
    "top_n": st.integers(-1, 5),
    "use_activation": st.booleans(),
    "apply_softmax": st.booleans(),
    "item_first": st.booleans(),
    "return_documents": st.booleans(),
}
CASES = {
    "/v1/embeddings": (protocol.EmbeddingsRequest, ("input",)),
    "/encode": (protocol.EncodeRequest, ("text",)),
    "/v1/rerank": (protocol.RerankRequest, ("query", "documents")),
    "/v1/score": (protocol.ScoreRequest, ("text_1", "text_2")),
    "/score": (protocol.LabelScoreRequest, ("query", "items", "label_token_ids")),
    "/v1/classify": (protocol.ClassifyRequest, ("input",)),
}


@pytest.fixture(scope="module")
def server_once(bert_tokenizer) -> Server:
    """One for all examples, with a model of each kind."""
    size = bert_tokenizer.vocab_size
    kinds = {spec.kind: spec for spec in (EMBED, LABELS, SCORE)} | {"tiny": None}
    return Server(
        PoolingBackend(
            *(ServedModel(name, "/x", bert_tokenizer, None, CONTEXT, size, (), pooling=spec) for name, spec in kinds.items())
        )
    )


@pytest.mark.parametrize("path", CASES)
@settings(max_examples=80, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_no_body_gives_a_500(server_once, path, data):
    kind, required = CASES[path]
    others = data.draw(
        st.lists(st.sampled_from([name for name in kind.model_fields if name not in ("model", *required)]), max_size=3)
    )
    body = {
        "model": data.draw(st.sampled_from(["embed", "classify", "score", "tiny", "tiny" if path == "/score" else "embed"]))
    }
    for name in (*required, *others):
        body[name] = data.draw(SENSIBLE[name] | values if name in SENSIBLE else values)
    response = call(server_once, path, orjson.dumps(body))
    assert response.status_code in (200, 400, 404), response.text
    if response.status_code == 400:
        error = orjson.loads(response.content)["error"]
        assert error["message"] and error["code"] and error["param"].split(".")[0] in kind.model_fields
