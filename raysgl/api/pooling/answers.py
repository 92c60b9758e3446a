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


class RankedText(BaseModel):
    text: str


class RankedDocument(BaseModel):
    """index: in the request's documents."""

    index: int
    relevance_score: float
    document: RankedText | None = None


class Ranked(BaseModel):
    """results: best first."""

    id: str
    object: str
    model: str
    results: list[RankedDocument]
    usage: Usage


class Score(BaseModel):
    index: int
    object: str
    score: float


class Scores(BaseModel):
    id: str
    object: str
    created: int
    model: str
    data: list[Score]
    usage: Usage


class LabelScores(BaseModel):
    """scores: for each item one of each label."""

    scores: list[list[float]]
    model: str
    usage: Usage
    object: str


class Label(BaseModel):
    index: int
    label: str
    probs: list[float]
    num_classes: int


class Classified(BaseModel):
    id: str
    object: str
    created: int
    model: str
    data: list[Label]
    usage: Usage


CLASSIFIED = Classified | Encoded | list[Encoded]
