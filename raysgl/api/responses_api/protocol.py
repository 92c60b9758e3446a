"""The request type of POST /v1/responses."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, SkipValidation

from raysgl.api.protocol import Request


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, protected_namespaces=(), populate_by_name=True)


class TextContent(Strict):
    type: Literal["input_text", "output_text", "text"]
    text: str
    annotations: Any = None
    logprobs: Any = None
    prompt_cache_breakpoint: Any = None


class RefusalContent(Strict):
    type: Literal["refusal"]
    refusal: str


Content = TextContent | RefusalContent


class MessageItem(Strict):
    role: Literal["user", "system", "developer", "assistant"]
    content: str | list[SkipValidation[Content]]
    type: Literal["message"] = "message"
    id: str | None = None
    status: str | None = None
    phase: str | None = None


class FunctionCallItem(Strict):
    type: Literal["function_call"]
    call_id: str
    name: str
    arguments: str
    id: str | None = None
    status: str | None = None
    namespace: None = None
    caller: None = None
    async_: None = Field(None, alias="async")


class FunctionCallOutputItem(Strict):
    type: Literal["function_call_output"]
    call_id: str
    output: str | list[SkipValidation[Content]]
    id: str | None = None
    status: str | None = None
    name: str | None = None
    namespace: None = None
    caller: None = None


class ReasoningText(Strict):
    type: Literal["reasoning_text", "summary_text"]
    text: str


class ReasoningItem(Strict):
    """What the model thought before, as it was answered."""

    type: Literal["reasoning"]
    summary: list[ReasoningText] | None = None
    content: list[ReasoningText] | None = None
    encrypted_content: str | None = None
    id: str | None = None
    status: str | None = None


Item = MessageItem | FunctionCallItem | FunctionCallOutputItem | ReasoningItem


class FunctionTool(Strict):
    type: Literal["function"]
    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Reasoning(Strict):
    effort: str | None = None
    summary: Literal["auto", "detailed"] | None = Field(None, description="answers have the reasoning itself")
    generate_summary: None = None


class TextFormat(Strict):
    type: Literal["text", "json_object", "json_schema"]
    name: str | None = None
    schema_: dict[str, Any] | None = Field(None, alias="schema")
    strict: bool | None = None
    description: str | None = None


class Text(Strict):
    format: TextFormat | None = None
    verbosity: Literal["medium"] | None = None


class StreamOptions(Strict):
    include_obfuscation: Literal[False] | None = None


class ResponsesRequest(Request):
    """`input`'s items and the tools are checked by `to_chat`, which knows their place."""

    input: str | list[SkipValidation[Item]]
    instructions: str | None = None
    max_output_tokens: int | None = Field(None, ge=1, description="default: the rest of the context")
    temperature: float | None = None
    top_p: float | None = None
    top_logprobs: int | None = Field(None, description="needs message.output_text.logprobs in include")
    include: list[Literal["message.output_text.logprobs", "reasoning.encrypted_content"]] | None = None
    tools: list[SkipValidation[FunctionTool]] | None = None
    tool_choice: Literal["auto", "none", "required"] | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    reasoning: Reasoning | None = None
    text: Text | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    truncation: Literal["disabled"] | None = None
    prompt_cache_key: str | None = None
    stop: str | list[str] | None = Field(None, description="an extension of OpenAI's")
    ignore_eos: bool | None = Field(None, description="an extension of OpenAI's")
    store: bool | None = Field(None, description="nothing is stored; the answer says so")
    background: Literal[False] | None = None
    previous_response_id: None = None
    conversation: None = None
    prompt: None = None

    max_tool_calls: Any = None
    metadata: dict[str, str] | None = None
    user: Any = None
    safety_identifier: Any = None
    service_tier: Any = None
    prompt_cache_retention: Any = None
