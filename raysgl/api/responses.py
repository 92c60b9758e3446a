"""The shapes of answers, for the OpenAPI description only: answers themselves are formatted by hand (`answers.py`)."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel


class CachedTokens(BaseModel):
    cached_tokens: int


class UsageInfo(BaseModel):
    prompt_tokens: int
    total_tokens: int
    completion_tokens: int
    prompt_tokens_details: CachedTokens
    reasoning_tokens: int
    completion_tokens_details: dict[str, int] | None


class AlternativeToken(BaseModel):
    token: str
    bytes: list[int]
    logprob: float


class ChatTokenLogprob(AlternativeToken):
    top_logprobs: list[AlternativeToken]


class ChatLogprobs(BaseModel):
    content: list[ChatTokenLogprob]


class CalledFunction(BaseModel):
    """arguments: JSON text."""

    name: str
    arguments: str


class ToolCall(BaseModel):
    id: str
    index: int
    type: str
    function: CalledFunction


class AssistantMessage(BaseModel):
    """content: null where there is only reasoning, or calls. tool_calls: where there are any."""

    role: str
    content: str | None
    reasoning_content: str | None
    tool_calls: list[ToolCall] | None = None


class Choice(BaseModel):
    """finish_reason: stop, length, tool_calls or abort. matched_stop: the stop string, or the id of the stop token."""

    index: int
    finish_reason: str
    matched_stop: int | str | None


class ChatChoice(Choice):
    message: AssistantMessage
    logprobs: ChatLogprobs | None


class CompletionLogprobs(BaseModel):
    text_offset: list[int]
    token_logprobs: list[float | None]
    tokens: list[str]
    top_logprobs: list[dict[str, float] | None] | None


class CompletionChoice(Choice):
    text: str
    logprobs: CompletionLogprobs | None


class WholeAnswer(BaseModel):
    id: str
    object: str
    created: int
    model: str
    usage: UsageInfo
    metadata: dict[str, str]


class ChatCompletion(WholeAnswer):
    choices: list[ChatChoice]


class Completion(WholeAnswer):
    choices: list[CompletionChoice]


class MetaInfo(BaseModel):
    """finish_reason: null while running; type stop (with `matched`), length (with `length`) or abort (with `message`). Log
    probabilities are lists of (value, token id, text or null). e2e_latency: seconds, once finished."""

    id: str
    finish_reason: dict[str, Any] | None
    prompt_tokens: int
    weight_version: str
    num_retractions: int
    completion_tokens: int
    reasoning_tokens: int
    cached_tokens: int
    input_token_logprobs: list[tuple[float | None, int, str | None]] | None = None
    output_token_logprobs: list[tuple[float | None, int, str | None]] | None = None
    output_token_logprobs_length: int | None = None
    input_top_logprobs: list[list[tuple[float, int, str | None]] | None] | None = None
    output_top_logprobs: list[list[tuple[float, int, str | None]]] | None = None
    input_token_ids_logprobs: list[list[tuple[float, int, str | None]] | None] | None = None
    output_token_ids_logprobs: list[list[tuple[float, int, str | None]]] | None = None
    e2e_latency: float | None = None
    response_sent_to_client_ts: float


class Generated(BaseModel):
    """`index` where a stream has several sequences."""

    text: str
    output_ids: list[int]
    meta_info: MetaInfo
    prompt_token_ids: list[int] | None = None
    index: int | None = None


class ModelInfo(BaseModel):
    model_path: str
    served_model_name: str
    tokenizer_path: str
    is_generation: bool
    weight_version: str
    load_format: str
    model_type: str
    architectures: list[str]


class ReplicaSaid(BaseModel):
    ok: bool
    message: str


class Commanded(BaseModel):
    """replica -> whether it did what it was told, and how, or why not."""

    replicas: dict[str, ReplicaSaid]


class WeightsUpdated(Commanded):
    """success: everywhere."""

    success: bool
    message: str


class IndexCheck(BaseModel):
    """status: equal, different, or busy, where something could not be compared. See docs/routing.md."""

    status: str
    replicas: dict[str, dict[str, Any]]


class Logging(BaseModel):
    """What holds now."""

    log_level: str
    log_format: str
    log_requests: bool
    log_requests_level: int


class ModelCard(BaseModel):
    id: str
    object: str
    created: int
    owned_by: str
    root: str
    parent: str | None
    max_model_len: int


class ModelList(BaseModel):
    object: str
    data: list[ModelCard]


class TokenizeResponse(BaseModel):
    tokens: list[int] | list[list[int]]
    count: int | list[int]
    max_model_len: int


class DetokenizeResponse(BaseModel):
    text: str | list[str]


class ParsedCall(BaseModel):
    tool_index: int
    name: str
    parameters: str


class ParseFunctionCallResponse(BaseModel):
    normal_text: str
    calls: list[ParsedCall]


class SeparateReasoningResponse(BaseModel):
    reasoning_text: str
    text: str


class AbortResponse(BaseModel):
    aborted: int


class InputTokens(BaseModel):
    input_tokens: int


class MessageUsage(InputTokens):
    cache_creation_input_tokens: int
    cache_read_input_tokens: int
    output_tokens: int


class Message(BaseModel):
    """Anthropic's."""

    id: str
    type: str
    role: str
    model: str
    content: list[dict[str, Any]]
    stop_reason: str
    stop_sequence: str | None
    usage: MessageUsage


class Response(BaseModel):
    """Of the Responses API. Members that repeat the request are not listed."""

    id: str
    object: str
    created_at: int
    status: str
    error: dict[str, Any] | None
    incomplete_details: dict[str, str] | None
    model: str
    output: list[dict[str, Any]]
    usage: dict[str, Any]


class ErrorInfo(BaseModel):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorResponse(BaseModel):
    error: ErrorInfo


class AnthropicErrorInfo(BaseModel):
    type: str
    message: str


class AnthropicError(BaseModel):
    type: str
    error: AnthropicErrorInfo
