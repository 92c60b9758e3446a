"""What a client may ask of the sampler. Plain data: no torch, so the API can build and check it.

Names and ranges are SGLang's (reference: `docs/api.md`); the OpenAI names map onto them in `raysgl.api`.
"""

from __future__ import annotations

import math

import msgspec

from raysgl.sampling.constraint import Constraint

MAX_TOP_LOGPROBS = 20
MAX_STOP_STRINGS = 32
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
    `prompt_logprobs` for the same of every prompt token (None: not at all; 0: only the prompt token itself).
    `constraint` holds for the output, or, with `think_end_ids`, for what follows these token ids in the output.
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
    ignore_eos: bool = False
    no_stop_trim: bool = False
    skip_special_tokens: bool = True
    logprobs: bool = False
    top_logprobs: int = 0
    prompt_logprobs: int | None = None
    constraint: Constraint | None = None
    think_end_ids: tuple[int, ...] = ()

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
        for token in self.stop_token_ids:
            need(0 <= token < vocab_size, "stop_token_ids", f"token ids from 0 to {vocab_size - 1}")
        need(0 <= self.top_logprobs <= MAX_TOP_LOGPROBS, "top_logprobs", f"from 0 to {MAX_TOP_LOGPROBS}")
        need(
            self.prompt_logprobs is None or 0 <= self.prompt_logprobs <= MAX_TOP_LOGPROBS,
            "prompt_logprobs",
            f"from 0 to {MAX_TOP_LOGPROBS}",
        )
        for token, bias in (self.logit_bias or {}).items():
            need(0 <= token < vocab_size, "logit_bias", f"a map of token ids from 0 to {vocab_size - 1}")
            need(-100 <= bias <= 100, "logit_bias", "a map of values from -100 to 100")
