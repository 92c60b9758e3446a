"""The request types of embeddings, classify, rerank and score. Field names are OpenAI's, Jina's (rerank) and vLLM's (score)."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema

from raysgl.api.prompts import MAX_PROMPTS
from raysgl.api.protocol import Prompts, Request, Texts, TokenIds
from raysgl.sampling.params import MAX_TOKEN_IDS_LOGPROB


class TextDocument(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    text: str


_DOCUMENT = {"anyOf": [{"type": "string"}, TextDocument.model_json_schema()]}
# Read by `ranking.py`, so that an error's place is the document's, without a name of pydantic's for the kind it tried.
Documents = Annotated[list[Any], WithJsonSchema({"type": "array", "items": _DOCUMENT})]


class PoolingRequest(Request):
    """What all of them share."""

    truncate_prompt_tokens: int | None = Field(
        None, description="keep so many of a text's first tokens, the model's own included; -1: as many as fit"
    )
    rid: str | None = Field(
        None, min_length=1, max_length=256, description="id of the request; default: X-Request-Id, or random"
    )
    priority: int | None = Field(None, ge=-(2**31), lt=2**31)
    user: Any = None


class EmbeddingsRequest(PoolingRequest):
    input: Prompts
    encoding_format: Literal["float", "base64"] | None = Field(
        None, description="base64: of little-endian float32; default: float"
    )
    dimensions: int | None = Field(None, ge=1, description="shorter vectors, of models that were trained for it")
    add_special_tokens: bool | None = Field(None, description="default: true")


class EncodeRequest(PoolingRequest):
    """SGLang's: one text, or a batch."""

    text: Texts = None
    input_ids: TokenIds = None
    dimensions: int | None = Field(None, ge=1, description="shorter vectors, of models that were trained for it")


class RerankRequest(PoolingRequest):
    """Jina's and Cohere's. See `LabelScoreRequest` for a language model that says what is likely."""

    query: str
    documents: Documents = Field(min_length=1, max_length=MAX_PROMPTS)
    top_n: int | None = Field(None, ge=0, description="only the best; 0: all")
    return_documents: bool | None = Field(None, description="results have the documents' texts; default: true")
    instruct: str | None = Field(
        None, description="what makes a document fit; for language models whose chat template reads it"
    )
    use_activation: bool | None = Field(None, description="false: a cross-encoder's bare numbers; default: true")


class ScoreRequest(PoolingRequest):
    """vLLM's: how a text fits each of several, or the texts of two lists one by one. Or SGLang's (`LabelScoreRequest`)."""

    text_1: str | list[str]
    text_2: str | list[str]
    use_activation: bool | None = Field(None, description="false: a cross-encoder's bare numbers; default: true")


class LabelScoreRequest(Request):
    """SGLang's: how probable each of some tokens is behind query and item, by a model that generates."""

    query: Annotated[Any, WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "integer"}}]})]
    items: Prompts
    label_token_ids: list[int] = Field(min_length=1, max_length=MAX_TOKEN_IDS_LOGPROB)
    apply_softmax: bool | None = Field(None, description="probabilities among the labels alone; default: false")
    item_first: bool | None = Field(None, description="the query comes behind the item; default: false")
    rid: str | None = Field(
        None, min_length=1, max_length=256, description="id of the request; default: X-Request-Id, or random"
    )
    priority: int | None = Field(None, ge=-(2**31), lt=2**31)


class ClassifyRequest(PoolingRequest):
    """vLLM's; `EncodeRequest` is SGLang's."""

    input: Prompts
    use_activation: bool | None = Field(None, description="false: bare numbers instead of probabilities; default: true")
