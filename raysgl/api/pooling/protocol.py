"""The request types of embeddings, classify, rerank and score. Field names are OpenAI's, Jina's (rerank) and vLLM's (score)."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from raysgl.api.protocol import Prompts, Request, Texts, TokenIds


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
