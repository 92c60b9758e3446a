"""The request types of the HTTP API, and how a body becomes one. Field names are OpenAI's, extensions SGLang's.

Nothing is silently ignored: a field is used, or is pure metadata, or is refused by name (`unsupported.py`, or because nobody
knows it).
"""

from __future__ import annotations

import re
import reprlib
from typing import Annotated, Any, Literal, TypeVar

import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError, WithJsonSchema

from raysgl.api.errors import ApiError, bad_request
from raysgl.api.unsupported import refuse_unsupported
from raysgl.messages import Level, MemoryTag

_TEXTS = [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]
_IDS: list[dict[str, Any]] = [{"type": "array", "items": {"type": "integer"}}]
_IDS.append({"type": "array", "items": _IDS[0]})
# Checked by `prompts.py`: pydantic would list one problem for every token of a long prompt.
Texts = Annotated[Any, WithJsonSchema({"anyOf": _TEXTS})]
TokenIds = Annotated[Any, WithJsonSchema({"anyOf": _IDS})]
Prompts = Annotated[Any, WithJsonSchema({"anyOf": _TEXTS + _IDS})]


class Request(BaseModel):
    """Numbers must be numbers and strings strings; unknown fields are refused."""

    model_config = ConfigDict(extra="forbid", strict=True, protected_namespaces=())

    model: str | None = Field(None, description="may be left out where one model is served")


class StreamOptions(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    include_usage: bool | None = Field(None, description="a last chunk with the usage of the whole request")
    continuous_usage_stats: bool | None = Field(None, description="usage so far in every chunk")


class GenerationRequest(Request):
    """What chat and text completions share. None means: the model's default, else the API's."""

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    repetition_penalty: float | None = None
    logit_bias: dict[str, float] | None = Field(None, description="token id -> added to its logit")
    seed: int | None = None
    n: int | None = None
    max_tokens: int | None = None
    min_tokens: int | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    stop_regex: str | list[str] | None = Field(None, description="the answer ends before what matches")
    allowed_token_ids: list[int] | None = Field(None, description="no other tokens are sampled")
    bad_words: list[str] | None = Field(None, description="texts that are not said")
    response_format: Any = Field(None, description="text, json_object, json_schema or structural_tag")
    json_schema: Any = Field(None, description="the answer follows it; an object, or JSON as a string")
    regex: Any = Field(None, description="the whole answer matches it")
    ebnf: Any = Field(None, description="a grammar in GBNF or Lark")
    structural_tag: Any = Field(None, description="constraints between tags; an object, or JSON as a string")
    structured_outputs: Any = Field(None, description="one of json, regex, choice, grammar, json_object, structural_tag")
    guided_json: Any = None
    guided_regex: Any = None
    guided_choice: Any = None
    guided_grammar: Any = None
    ignore_eos: bool | None = None
    include_stop_str_in_output: bool | None = Field(None, description="another name of no_stop_trim")
    no_stop_trim: bool | None = Field(None, description="keep the stop string or token in the text")
    skip_special_tokens: bool | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    stream_interval: int | None = Field(None, ge=1, description="tokens in a chunk; default: the server's setting")
    add_special_tokens: bool | None = Field(None, description="default: true for texts, false for messages")
    truncate_prompt_tokens: int | None = Field(None, description="keep so many of the prompt's last tokens; -1: what fits")
    prompt_logprobs: int | None = Field(None, description="alternatives for each prompt token")
    return_token_ids: bool | None = Field(None, description="choices have token_ids, and there are prompt_token_ids")
    return_prompt_token_ids: bool | None = None
    return_meta_info: bool | None = Field(None, description="choices have meta_info, as /generate's")
    return_cached_tokens_details: bool | None = None

    rid: str | None = Field(
        None, min_length=1, max_length=256, description="id of the request; default: X-Request-Id, or random"
    )
    priority: int | None = Field(None, ge=-(2**31), lt=2**31)
    extra_key: str | None = Field(None, description="prefixes are only shared between requests with the same one")
    cache_salt: str | None = Field(None, description="as extra_key")
    prompt_cache_key: str | None = Field(None, description="requests with the same one prefer the same replica")

    user: Any = None
    metadata: Any = None
    store: Any = None
    service_tier: Any = None
    safety_identifier: Any = None
    prompt_cache_retention: Any = None
    no_logs: Any = None
    log_metrics: Any = None
    custom_labels: Any = None


class TextPart(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    type: Literal["text"]
    text: str


class CalledFunction(BaseModel):
    """arguments: JSON text, as it was answered; the object itself is taken too."""

    model_config = ConfigDict(extra="allow", strict=True)

    name: str
    arguments: str | dict[str, Any] | None = None


class ToolCall(BaseModel):
    model_config = ConfigDict(extra="allow", strict=True)

    id: str | None = None
    type: Literal["function"] = "function"
    function: CalledFunction


class ChatMessage(BaseModel):
    """One message. It goes to the chat template as it is, so fields besides these have the effect that the template gives them."""

    model_config = ConfigDict(extra="allow", strict=True)

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[TextPart] | None = None
    tool_calls: list[ToolCall] | None = None


class FunctionTool(BaseModel):
    """What the model may call. It goes to the chat template as it is."""

    model_config = ConfigDict(extra="allow", strict=True)

    name: str = Field(min_length=1)
    description: str | None = None
    parameters: dict[str, Any] | None = Field(None, description="JSON Schema of the arguments")
    strict: bool | None = Field(None, description="arguments always follow the schema")


class Tool(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    type: Literal["function"] = "function"
    function: FunctionTool


class ToolName(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    name: str


class NamedTool(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    type: Literal["function"]
    function: ToolName


class ToolNames(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    mode: Literal["auto", "required"]
    tools: list[NamedTool] = Field(min_length=1)


class AllowedTools(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    type: Literal["allowed_tools"]
    allowed_tools: ToolNames


class ChatInput(Request):
    """What a prompt is rendered from."""

    messages: list[ChatMessage] = Field(min_length=1)
    chat_template: str | None = Field(None, description="instead of the model's; needs trust_request_chat_template")
    chat_template_kwargs: dict[str, Any] | None = Field(None, description="variables of the chat template")
    documents: list[dict[str, Any]] | None = Field(None, description="where the model's template has them")
    reasoning_effort: str | None = Field(
        None, description="where the model's template has it, or a switch for thinking: none turns that off"
    )
    tools: list[Tool] | None = Field(None, description="functions that the model may call")
    tool_choice: Literal["auto", "none", "required"] | NamedTool | AllowedTools | None = Field(
        None, description="whether it may, must, or must call this one; default: auto"
    )
    parallel_tool_calls: bool | None = Field(None, description="false: at most one call")
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = Field(None, description="go on with the last message instead of answering it")


class ChatCompletionRequest(ChatInput, GenerationRequest):
    messages: list[ChatMessage] = Field([], min_length=1, description="or input_ids")
    input_ids: Annotated[Any, WithJsonSchema(_IDS[0])] = Field(None, description="the prompt's token ids, instead of messages")
    max_completion_tokens: int | None = Field(
        None, description="instead of max_tokens; without either, the rest of the context"
    )
    logprobs: bool | None = None
    top_logprobs: int | None = None
    separate_reasoning: bool | None = Field(None, description="false: what the model thinks stays in the text, with its marks")
    stream_reasoning: bool | None = Field(None, description="false: what it thinks comes in one piece")
    max_thinking_tokens: int | None = Field(None, ge=0, description="the reasoning is ended behind so many tokens")


class CompletionRequest(GenerationRequest):
    prompt: Prompts
    echo: bool | None = Field(None, description="the prompt is part of the text")
    logprobs: int | None = Field(None, description="alternatives for each token; 0: only the token itself")


class TokenizeRequest(Request):
    """A prompt, or several; or messages (`TokenizeChatRequest`)."""

    prompt: Texts
    add_special_tokens: bool | None = None


class TokenizeChatRequest(ChatInput):
    add_special_tokens: bool | None = None


class DetokenizeRequest(Request):
    tokens: TokenIds
    skip_special_tokens: bool | None = None


class ParseFunctionCallRequest(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    text: str = Field(max_length=2**20)
    tools: list[Tool] = Field(default_factory=list, description="bare calls without tags count only if they name one of these")
    tool_call_parser: str = Field(description="the format's name")


class SeparateReasoningRequest(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    text: str = Field(max_length=2**20)
    reasoning_parser: str = Field(description="the format's name")


class AbortRequest(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    rid: str | None = Field(None, description="the id of a request, exactly")
    abort_all: bool = False


class StartProfileRequest(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    model: str | None = Field(None, description="only this model's replicas")
    output_dir: str | None = Field(None, description="a folder inside the setting profile_dir")
    activities: list[Literal["CPU", "GPU"]] | None = Field(None, min_length=1)
    num_steps: int | None = Field(None, ge=1, description="stop after so many steps; default: at /stop_profile")
    profile_id: str | None = Field(None, pattern=r"^[A-Za-z0-9_.-]{1,100}$", description="the files' names begin with it")
    with_stack: bool | None = None
    record_shapes: bool | None = None


class StopProfileRequest(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    model: str | None = Field(None, description="only this model's replicas")


class MemoryRequest(BaseModel):
    """Of /release_memory_occupation and /resume_memory_occupation."""

    model_config = ConfigDict(extra="forbid", strict=True)

    model: str | None = Field(None, description="only this model's replicas")
    tags: list[MemoryTag] | None = Field(None, min_length=1, description="which parts; default: all")


class UpdateWeightsRequest(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    model: str | None = Field(None, description="which model; may be left out where one is served")
    model_path: str = Field(min_length=1, description="a checkpoint on every node's disk, of the same architecture")
    load_format: Literal["auto", "safetensors", "gguf", "dummy"] | None = None
    weight_version: str | None = Field(None, description="what /model_info calls these weights; default: as before")
    abort_all_requests: bool = Field(False, description="else what runs is waited for")
    flush_cache: bool = Field(True, description="drop the cached prefixes")
    torch_empty_cache: bool = Field(False, description="give back GPU memory that torch keeps")
    recapture_cuda_graph: bool = Field(False, description="capture CUDA graphs anew, which is not needed")


class ConfigureLoggingRequest(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    log_level: Level | None = Field(None, description="of every ingress and engine")
    log_format: Literal["text", "json"] | None = None
    log_requests: bool | None = Field(None, description="whether requests are logged")
    log_requests_level: int | None = Field(None, ge=0, le=3, description="in which detail")


T = TypeVar("T", bound=BaseModel)


def parse_json(body: bytes) -> dict[str, Any]:
    """The body as an object, else ApiError 400."""
    try:
        data = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise bad_request(f"The body is not valid JSON: {error}", code="invalid_json") from None
    if not isinstance(data, dict):
        raise bad_request("The body must be a JSON object", code="invalid_json")
    if len(body) > COUNTED_BYTES:
        _check_size(data)
    return data


COUNTED_BYTES = 64 * 1024
"""Of smaller bodies the values are not counted."""
MAX_IDS = 2_000_000
"""In one list of token ids: more than any context holds."""
MAX_VALUES = 100_000
"""In a body, beside token ids. A million messages would hold all streams up for three seconds while they are checked."""


def _check_size(data: dict[str, Any]) -> None:
    """ApiError 400 for a body with too many values; lists of numbers alone (token ids) count once."""
    count, rest = 0, list(data.items())
    while rest:
        field, value = rest.pop()
        values = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
        if isinstance(value, list) and len(value) <= MAX_IDS and set(map(type, value)) == {int}:
            values = ()
        count += 1 + len(values)
        if count > MAX_VALUES:
            raise bad_request(f"The body has more than {MAX_VALUES} values, most of them in {field}", field, "too_many_values")
        rest.extend((field, inner) for inner in values if isinstance(inner, (dict, list)))


def validate(kind: type[T], data: dict[str, Any]) -> T:
    """The request, else ApiError 400 that names the first field at fault."""
    refuse_unsupported(kind.model_fields, data)
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        raise _explain(error) from None


def validate_at(kind: type[T], data: Any, where: str) -> T:
    """A part of a request, else ApiError 400 that names the field at fault with the part's place before it."""
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        raise _explain(error, where) from None


_REPR = reprlib.Repr()
"""Hostile input may be very deep or very long."""
_REPR.maxlevel, _REPR.maxlist, _REPR.maxdict, _REPR.maxstring, _REPR.maxother = 4, 20, 20, 200, 200


def _explain(error: ValidationError, place: str = "") -> ApiError:
    """The deepest of pydantic's complaints, in our words: of a union's members it is the one that fitted best."""
    problems = error.errors(include_url=False, include_context=False)
    first = field_path(problems[0]["loc"])
    top = first.split(".")[0]
    problem = max((p for p in problems if field_path(p["loc"]).split(".")[0] == top), key=lambda p: len(p["loc"]))
    where, kind = ".".join(filter(None, (place, field_path(problem["loc"])))), problem["type"]
    if kind == "extra_forbidden":
        return bad_request(f"Unknown field: {where}", where, "unknown_parameter")
    if kind == "missing":
        return bad_request(f"{where} is required, but missing", where, "missing_required_parameter")
    same = [p for p in problems if field_path(p["loc"]) == field_path(problem["loc"])]
    rules = dict.fromkeys(_rule(p["msg"]) for p in same)
    shown = _REPR.repr(problem["input"])
    shown = shown if len(shown) <= 100 else shown[:100] + "..."
    return bad_request(f"{where} is {shown}, but must be {' or '.join(rules)}", where)


def _rule(message: str) -> str:
    message = re.sub(r"^(\w+) should have (at (?:least|most) \d+ \w+).*", r"a \1 of \2", message)  # List, String, Tuple
    return re.sub(r"^(Input should be |Value error, )", "", message.replace("a List of", "a list of"))


def field_path(loc: tuple[int | str, ...]) -> str:
    """messages.0.content from pydantic's location, without the labels that it adds for the members of a union."""
    parts = [str(part) for part in loc if isinstance(part, int) or part.isidentifier() and part not in _UNION_LABELS]
    return ".".join(parts)


_UNION_LABELS = frozenset({"str", "int", "float", "bool", "NamedTool", "AllowedTools"})
