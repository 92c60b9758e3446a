"""The body of POST /generate, with SGLang's names."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from raysgl.api.errors import ApiError, bad_request
from raysgl.api.protocol import Request, Texts, TokenIds, validate


class NativeSampling(BaseModel):
    """`sampling_params` of a prompt."""

    model_config = ConfigDict(extra="forbid", strict=True)

    max_new_tokens: int | None = Field(None, description="default: 128")
    min_new_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    repetition_penalty: float | None = None
    logit_bias: dict[str, float] | None = Field(None, description="token id -> added to its logit")
    sampling_seed: int | None = None
    n: int | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    stop_regex: str | list[str] | None = None
    allowed_token_ids: list[int] | None = None
    bad_words: list[str] | None = None
    json_schema: Any = None
    regex: Any = None
    ebnf: Any = None
    structural_tag: Any = None
    stream_interval: int | None = Field(None, ge=1, description="tokens in an event of a stream")
    ignore_eos: bool | None = None
    no_stop_trim: bool | None = Field(None, description="keep the stop string or token in the text")
    skip_special_tokens: bool | None = None


class GenerateRequest(Request):
    """One prompt, or a batch: then what is said of a prompt may be a list, too, with an entry for each."""

    text: Texts = None
    input_ids: TokenIds = None
    sampling_params: dict[str, Any] | list[dict[str, Any]] | None = Field(None, description="see NativeSampling")
    rid: str | list[str] | None = Field(None, description="id of the request; that of a batch gets _0, _1, ... appended")
    stream: bool | None = None
    incremental_streaming_output: bool | None = Field(
        None, description="a stream's events carry what is new, not all so far; default: the server's setting"
    )
    return_logprob: bool | list[bool] | None = None
    logprob_start_len: int | list[int] | None = Field(None, description="first prompt token to report on; -1: none")
    top_logprobs_num: int | list[int] | None = None
    token_ids_logprob: list[int] | list[list[int]] | None = Field(None, description="tokens to report on at each position")
    return_text_in_logprobs: bool | None = None
    return_prompt_token_ids: bool | None = None
    priority: int | None = Field(None, ge=-(2**31), lt=2**31)
    extra_key: str | list[str] | None = Field(None, description="prefixes are only shared between requests with the same one")
    cache_salt: str | None = Field(None, description="as extra_key")
    routing_key: str | None = Field(None, description="requests with the same one prefer the same replica")

    no_logs: Any = None
    log_metrics: Any = None
    custom_labels: Any = None


class Items:
    """A batch's fields, prompt by prompt."""

    def __init__(self, request: GenerateRequest, count: int | None):
        """count: of the batch's prompts; None for a single prompt, whose fields may not be lists."""
        self._request, self._count = request, count

    def of(self, name: str, index: int, default: Any = None) -> Any:
        """The field of one prompt; what is said once holds for all. ApiError 400 for a list of another length."""
        value = getattr(self._request, name)
        if value is None:
            return default
        nested = isinstance(value, list) and (name != "token_ids_logprob" or any(isinstance(item, list) for item in value))
        if not nested:
            return value
        if self._count is None:
            raise bad_request(f"{name} is a list, but there is one prompt that is no list", name)
        if len(value) != self._count:
            raise bad_request(f"{name} has {len(value)} entries, but there are {self._count} prompts", name)
        return value[index]


def native_sampling(fields: dict[str, Any]) -> NativeSampling:
    """A `sampling_params` object. ApiError 400 that names its field."""
    try:
        return validate(NativeSampling, dict(fields))
    except ApiError as error:
        raise bad_request(f"sampling_params: {error.message}", f"sampling_params.{error.param}", error.code) from None
