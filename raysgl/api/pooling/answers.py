"""The shapes of answers, for the OpenAPI description only."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel


class Usage(BaseModel):
    prompt_tokens: int
    total_tokens: int
    completion_tokens: int
    prompt_tokens_details: dict[str, int] | None


class Embedding(BaseModel):
    """embedding: a list of numbers, or, with encoding_format base64, a string."""

    object: str
    index: int
    embedding: list[float] | str


class Embeddings(BaseModel):
    object: str
    data: list[Embedding]
    model: str
    usage: Usage


class NumbersInfo(BaseModel):
    """e2e_latency: seconds."""

    id: str
    finish_reason: dict[str, Any]
    prompt_tokens: int
    weight_version: str
    e2e_latency: float


class Encoded(BaseModel):
    """Of a batch a list."""

    embedding: list[float]
    meta_info: NumbersInfo
