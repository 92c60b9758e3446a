"""What a client may ask of the sampler. Plain data: no torch, so the API can build and check it.

Names and ranges are SGLang's (reference: `docs/api.md`); the OpenAI names map onto them in `raysgl.api`.
"""

from __future__ import annotations

import math

import msgspec

from raysgl.sampling.constraint import Constraint

MAX_TOP_LOGPROBS = 20
MAX_TOKEN_IDS_LOGPROB = 1024
MAX_STOP_STRINGS = 32
MAX_BAD_WORDS = 256
MAX_BAD_WORD_TOKENS = 32
GREEDY_BELOW = 1e-6
"""A temperature below this means greedy: argmax, no noise."""


class InvalidParameter(ValueError):
    """A request field has a value that is not allowed. `field` is the sampling parameter's name."""

    def __init__(self, field: str, value: object, allowed: str):
        super().__init__(f"{field} is {value!r}, but must be {allowed}")
        self.field = field
        self.value = value
        self.allowed = allowed


class SamplingParams(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """One request's sampling settings.

    `max_new_tokens` is None for "until the context is full"; the ingress resolves it before it submits.
    `top_k` -1 means the whole vocabulary. `seed` None draws one in the ingress, so that a resumed request
    continues with the same noise. `stop` is checked where text is decoded (the ingress), everything else in the engine.
    `logprobs` asks for the chosen token's log probability, `top_logprobs` for that many alternatives besides;
    `prompt_logprobs` for the same of every prompt token from position `prompt_logprobs_start` on (None: not at all; 0: only the
    prompt token itself); nothing is known about the first of them. `token_ids_logprob` asks for these tokens' log probabilities
    wherever there are any.
    `stop_regex` is checked where `stop` is. `allowed_token_ids`: no others are sampled (empty: all are). `bad_words`: token
    sequences whose last token is not sampled behind the others.
    `constraint` holds for the output, or, with `think_end_ids`, for what follows these token ids in the output. With `think_begin_id`
    the model may think or not: an output that begins with this token is held to it behind `think_end_ids`, any other at once.
    `max_thinking_tokens`: behind so many tokens of reasoning `think_end_ids` come, whatever the model would say.
    """

    max_new_tokens: int | None = None
    min_new_tokens: int = 0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = -1
    min_p: float = 0.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: dict[int, float] | None = None
    seed: int | None = None
    n: int = 1
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    stop_regex: tuple[str, ...] = ()
    ignore_eos: bool = False
    no_stop_trim: bool = False
    skip_special_tokens: bool = True
    logprobs: bool = False
    top_logprobs: int = 0
    prompt_logprobs: int | None = None
    prompt_logprobs_start: int = 0
    token_ids_logprob: tuple[int, ...] = ()
    allowed_token_ids: tuple[int, ...] = ()
    bad_words: tuple[tuple[int, ...], ...] = ()
    constraint: Constraint | None = None
    think_end_ids: tuple[int, ...] = ()
    think_begin_id: int | None = None
    max_thinking_tokens: int | None = None

    @property
    def greedy(self) -> bool:
        return self.temperature < GREEDY_BELOW or self.top_k == 1

    @property
    def penalised(self) -> bool:
        """Whether the sampler needs counts of the tokens seen so far."""
        return self.frequency_penalty != 0.0 or self.presence_penalty != 0.0 or self.repetition_penalty != 1.0

    def seed_of(self, index: int) -> int:
        """The seed of the request's `index`-th sequence, a signed 64-bit integer; an unseeded request counts as seed 0."""
        return ((self.seed or 0) + index + 2**63) % 2**64 - 2**63

    def verify(self, vocab_size: int) -> None:
        """Raise `InvalidParameter` for the first setting out of its range."""

        def need(ok: bool, field: str, allowed: str) -> None:
            if not ok:
                raise InvalidParameter(field, getattr(self, field), allowed)

        need(self.max_new_tokens is None or self.max_new_tokens >= 0, "max_new_tokens", "at least 0")
        need(self.min_new_tokens >= 0, "min_new_tokens", "at least 0")
        need(
            self.max_new_tokens is None or self.min_new_tokens <= self.max_new_tokens,
            "min_new_tokens",
            f"at most max_new_tokens ({self.max_new_tokens})",
        )
        need(math.isfinite(self.temperature) and self.temperature >= 0, "temperature", "a finite number of at least 0")
        need(0 < self.top_p <= 1, "top_p", "above 0 and at most 1")
        need(self.top_k == -1 or self.top_k >= 1, "top_k", "-1 (all) or at least 1")
        need(0 <= self.min_p <= 1, "min_p", "from 0 to 1")
        need(-2 <= self.frequency_penalty <= 2, "frequency_penalty", "from -2 to 2")
        need(-2 <= self.presence_penalty <= 2, "presence_penalty", "from -2 to 2")
        need(0 < self.repetition_penalty <= 2, "repetition_penalty", "above 0 and at most 2")
        need(self.seed is None or -(2**63) <= self.seed < 2**63, "seed", "a signed 64-bit integer")
        need(1 <= self.n <= 128, "n", "from 1 to 128")
        need(len(self.stop) <= MAX_STOP_STRINGS, "stop", f"at most {MAX_STOP_STRINGS} strings")
        need(all(self.stop), "stop", "strings that are not empty")
        for token in self.think_end_ids:
            need(0 <= token < vocab_size, "think_end_ids", f"token ids from 0 to {vocab_size - 1}")
        need(
            self.think_begin_id is None or (0 <= self.think_begin_id < vocab_size and bool(self.think_end_ids)),
            "think_begin_id",
            f"a token id from 0 to {vocab_size - 1}, with think_end_ids",
        )
        need(self.max_thinking_tokens is None or self.max_thinking_tokens >= 0, "max_thinking_tokens", "at least 0")
        for name in ("stop_token_ids", "token_ids_logprob", "allowed_token_ids"):
            for token in getattr(self, name):
                need(0 <= token < vocab_size, name, f"token ids from 0 to {vocab_size - 1}")
        need(len(self.stop_regex) <= MAX_STOP_STRINGS, "stop_regex", f"at most {MAX_STOP_STRINGS} patterns")
        need(len(self.token_ids_logprob) <= MAX_TOKEN_IDS_LOGPROB, "token_ids_logprob", f"at most {MAX_TOKEN_IDS_LOGPROB} ids")
        need(self.prompt_logprobs_start >= 0, "prompt_logprobs_start", "at least 0")
        need(len(self.bad_words) <= MAX_BAD_WORDS, "bad_words", f"at most {MAX_BAD_WORDS} token sequences")
        for word in self.bad_words:
            need(0 < len(word) <= MAX_BAD_WORD_TOKENS, "bad_words", f"words of 1 to {MAX_BAD_WORD_TOKENS} tokens")
            need(all(0 <= token < vocab_size for token in word), "bad_words", f"token ids from 0 to {vocab_size - 1}")
        need(0 <= self.top_logprobs <= MAX_TOP_LOGPROBS, "top_logprobs", f"from 0 to {MAX_TOP_LOGPROBS}")
        need(
            self.prompt_logprobs is None or 0 <= self.prompt_logprobs <= MAX_TOP_LOGPROBS,
            "prompt_logprobs",
            f"from 0 to {MAX_TOP_LOGPROBS}",
        )
        for token, bias in (self.logit_bias or {}).items():
            need(0 <= token < vocab_size, "logit_bias", f"a map of token ids from 0 to {vocab_size - 1}")
            need(-100 <= bias <= 100, "logit_bias", "a map of values from -100 to 100")
