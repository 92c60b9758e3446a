"""The sampling settings of every slot, as host arrays that a step picks its rows from.

A step needs some eight numbers per row: picked here with one numpy index and sent with one copy, they cost less than as many
gathers on the device. Written when a sequence takes a slot; only `num_output` moves with every token. N slots.
"""

from __future__ import annotations

import math

import numpy as np

from raysgl.sampling.filters import OFF
from raysgl.sampling.params import SamplingParams

COLUMNS = ("temperature", "top_p", "top_k", "log_min_p", "frequency", "presence", "repetition", "uniform")
"""Columns of `numbers`; the last is filled in for each step."""
TEMPERATURE, TOP_P, TOP_K, LOG_MIN_P, FREQUENCY, PRESENCE, REPETITION, UNIFORM = range(len(COLUMNS))
OF_THE_DRAW = (TEMPERATURE, TOP_P, TOP_K, LOG_MIN_P, UNIFORM)
"""In the order of the arguments of `raysgl.kernels.triton.draw.draw`."""


class Ragged:
    """A few values for each slot, padded to one width so that rows can be picked at once.

    The padding is zero, or with `repeat` the slot's last value: then it means nothing new where values are ids to mask.
    """

    def __init__(self, num_slots: int, dtype: type, repeat: bool = False):
        self._rows = np.zeros((num_slots, 1), dtype)
        self._repeat = repeat

    def set(self, slot: int, values: list) -> None:
        """`values` must not be empty."""
        width = self._rows.shape[1]
        if len(values) > width:
            more = max(len(values), 2 * width) - width
            self._rows = np.pad(self._rows, ((0, 0), (0, more)), mode="edge" if self._repeat else "constant")
        self._rows[slot] = values[-1] if self._repeat else 0
        self._rows[slot, : len(values)] = values

    def pick(self, slots: np.ndarray) -> np.ndarray:
        """[len(slots), width]"""
        return self._rows[slots]


class SlotSettings:
    """See the file's docstring.

    numbers_NC: float64, see `COLUMNS`. seeds_N, num_output_N: int64; the noise of a token is a function of these two.
    greedy_N: argmax, no noise. filtered_N: has top-k or top-p. penalised_N, biased_N: needs them applied.
    allowed_N: only `allowed_ids` may be sampled. worded_N: has bad words. asked_counts_N: how many `asked_ids` it has.
    min_new_N: output tokens before which `stop_ids` are forbidden (0 where none are). logprobs_N: alternatives asked for, or -1.
    """

    def __init__(self, num_slots: int, vocab_size: int):
        self.vocab_size = vocab_size
        self.numbers_NC = np.zeros((num_slots, len(COLUMNS)))
        self.numbers_NC[:] = [1.0, OFF, vocab_size, -math.inf, 0.0, 0.0, 1.0, 0.0]
        self.seeds_N = np.zeros(num_slots, np.int64)
        self.num_output_N = np.zeros(num_slots, np.int64)
        self.min_new_N = np.zeros(num_slots, np.int64)
        self.logprobs_N = np.full(num_slots, -1, np.int64)
        self.greedy_N = np.ones(num_slots, bool)
        self.filtered_N = np.zeros(num_slots, bool)
        self.min_p_N = np.zeros(num_slots, bool)
        self.penalised_N = np.zeros(num_slots, bool)
        self.biased_N = np.zeros(num_slots, bool)
        self.allowed_N = np.zeros(num_slots, bool)
        self.worded_N = np.zeros(num_slots, bool)
        self.asked_counts_N = np.zeros(num_slots, np.int64)
        self.allowed_ids = Ragged(num_slots, np.int64, repeat=True)
        self.asked_ids = Ragged(num_slots, np.int64)
        self.stop_ids = Ragged(num_slots, np.int64, repeat=True)
        self.bias_ids = Ragged(num_slots, np.int64)
        self.bias_values = Ragged(num_slots, np.float64)

    def set(self, slot: int, sampling: SamplingParams, seed: int, num_output: int, stop_ids: tuple[int, ...]) -> None:
        """A sequence takes the slot."""
        vocab_size = self.vocab_size
        top_k = vocab_size if sampling.top_k < 1 else min(sampling.top_k, vocab_size)
        self.numbers_NC[slot] = (
            sampling.temperature,
            sampling.top_p if sampling.top_p < 1 else OFF,
            top_k,
            math.log(sampling.min_p) if sampling.min_p > 0 else -math.inf,
            sampling.frequency_penalty,
            sampling.presence_penalty,
            sampling.repetition_penalty,
            0.0,
        )
        self.seeds_N[slot] = seed
        self.num_output_N[slot] = num_output
        self.logprobs_N[slot] = sampling.top_logprobs if sampling.logprobs else -1
        self.greedy_N[slot] = sampling.greedy
        self.filtered_N[slot] = sampling.top_p < 1 or top_k < vocab_size
        self.min_p_N[slot] = sampling.min_p > 0
        self.penalised_N[slot] = sampling.penalised
        self.min_new_N[slot] = sampling.min_new_tokens if stop_ids else 0
        if stop_ids:
            self.stop_ids.set(slot, list(stop_ids))
        self.allowed_N[slot] = bool(sampling.allowed_token_ids)
        if sampling.allowed_token_ids:
            self.allowed_ids.set(slot, list(sampling.allowed_token_ids))
        self.worded_N[slot] = bool(sampling.bad_words)
        self.asked_counts_N[slot] = len(sampling.token_ids_logprob)
        if sampling.token_ids_logprob:
            self.asked_ids.set(slot, list(sampling.token_ids_logprob))
        bias = sampling.logit_bias or {}
        self.biased_N[slot] = bool(bias)
        if bias:
            self.bias_ids.set(slot, list(bias))
            self.bias_values.set(slot, list(bias.values()))

    def takes_argmax(self, slots_L: np.ndarray) -> bool:
        """Whether all rows get the argmax of the model's logits, and nothing else was asked about them."""
        return bool(
            self.greedy_N[slots_L].all()
            and not self.penalised_N[slots_L].any()
            and not self.biased_N[slots_L].any()
            and not self.allowed_N[slots_L].any()
            and not self.worded_N[slots_L].any()
            and (self.logprobs_N[slots_L] < 0).all()
            and (self.num_output_N[slots_L] >= self.min_new_N[slots_L]).all()
        )

    def sampled(self, slots_L: np.ndarray) -> None:
        """Each of them has one token more."""
        self.num_output_N[slots_L] += 1
