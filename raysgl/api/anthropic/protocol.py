"""The request types of POST /v1/messages and /v1/messages/count_tokens."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, SkipValidation


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class TextBlock(Strict):
    type: Literal["text"]
    text: str
    cache_control: Any = None
    citations: Any = None


class TextSource(Strict):
    type: Literal["text"]
    media_type: Literal["text/plain"]
    data: str


class DocumentBlock(Strict):
    """Plain text only."""

    type: Literal["document"]
    source: TextSource
    title: str | None = None
    context: str | None = None
    cache_control: Any = None


class ThinkingBlock(Strict):
    """What the model thought before, as it was answered."""

    type: Literal["thinking"]
    thinking: str
    signature: str = ""


class ToolUseBlock(Strict):
    type: Literal["tool_use"]
    id: str
    name: str
    input: dict[str, Any]
    cache_control: Any = None
    caller: Any = None


class ToolResultBlock(Strict):
    type: Literal["tool_result"]
    tool_use_id: str
    content: str | list[TextBlock] | None = None
    is_error: bool | None = None
    cache_control: Any = None


ContentBlock = TextBlock | DocumentBlock | ThinkingBlock | ToolUseBlock | ToolResultBlock


class InputMessage(Strict):
    """`content`'s blocks are checked by `to_chat`, which knows their place."""

    role: Literal["user", "assistant", "system"]
    content: str | list[SkipValidation[ContentBlock]]


class Tool(Strict):
    """A function that the client carries out."""

    name: str
    input_schema: dict[str, Any]
    type: Literal["custom"] | None = None
    description: str | None = None
    strict: bool | None = None
    cache_control: Any = None
    eager_input_streaming: bool | None = None


class ToolChoice(Strict):
    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class Thinking(Strict):
    type: Literal["enabled", "disabled", "adaptive"]
    budget_tokens: int | None = Field(None, ge=1, description="most tokens of thinking")


class OutputFormat(Strict):
    model_config = ConfigDict(extra="forbid", strict=True, protected_namespaces=(), populate_by_name=True)

    type: Literal["json_schema"]
    schema_: dict[str, Any] = Field(alias="schema")


class OutputConfig(Strict):
    effort: str | None = None
    format: OutputFormat | None = None


class CountTokensRequest(Strict):
    """What a prompt is made from."""

    model: str
    messages: list[InputMessage] = Field(min_length=1)
    system: str | list[TextBlock] | None = None
    tools: list[SkipValidation[Tool]] | None = None
    tool_choice: ToolChoice | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None
    cache_control: Any = None


class MessagesRequest(CountTokensRequest):
    max_tokens: int = Field(ge=1)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = None
    top_k: int | None = None
    stop_sequences: list[str] | None = None
    stream: bool | None = None
    metadata: Any = None
    service_tier: Any = None
    inference_geo: Any = None
