"""A model as the HTTP layer sees it: names, limits, tokenizer, chat template, sampling defaults."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from raysgl.api.chat_template import ChatTemplate
    from raysgl.api.tokenizer import Tokenizer
    from raysgl.config import EngineConfig
    from raysgl.models.pooling import PoolingSpec


@dataclass
class ServedModel:
    """One entry of GET /v1/models.

    `max_total_tokens` is the size of the KV pool in tokens (0: not known).
    `defaults` holds sampling parameters from generation_config.json, by `SamplingParams` name.
    `tool_call_parser` and `reasoning_parser` name formats of `raysgl.api.parsers`; None: what the model writes is not parsed.
    `eos_token_ids` end a sequence unless `ignore_eos`. `config`: what its engines were started with. `model_type` and
    `architectures` are the checkpoint's own names. `pooling`: what it makes of texts; None: it generates text.
    """

    name: str
    model_path: str
    tokenizer: Tokenizer
    chat_template: ChatTemplate | None
    context_length: int
    vocab_size: int
    eos_token_ids: tuple[int, ...]
    page_size: int = 16
    max_total_tokens: int = 0
    defaults: dict[str, object] = field(default_factory=dict)
    created: int = 0
    config: EngineConfig | None = None
    tool_call_parser: str | None = None
    reasoning_parser: str | None = None
    model_type: str = ""
    architectures: tuple[str, ...] = ()
    pooling: PoolingSpec | None = None

    def token_limit(self) -> tuple[int, str]:
        """How many tokens prompt and answer can have together at most, and which limit that is."""
        if 0 < self.max_total_tokens < self.context_length:
            return self.max_total_tokens, "KV cache (max_total_tokens)"
        return self.context_length, "context length"
