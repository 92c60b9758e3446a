"""From logits to tokens, for all rows of a step at once.

In this order: repetition, frequency and presence penalty, logit bias, the masks of min_new_tokens, bad words, allowed tokens and
grammars; then temperature, top-k, top-p, min-p, draw. What a step needs is decided from host flags, so nothing waits for the device, and a step of greedy rows is an argmax.
Legend: L rows that sample, R some of them, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from raysgl.kernels.argmax import argmax
from raysgl.kernels.fused import triton_sampling
from raysgl.kernels.token_mask import apply_token_mask
from raysgl.sampling import filters
from raysgl.sampling import slot_settings as column
from raysgl.sampling.bad_words import BadWords
from raysgl.sampling.logprobs import Asked, Logprobs, logprobs_of
from raysgl.sampling.noise import uniforms
from raysgl.sampling.params import SamplingParams
from raysgl.sampling.penalties import TokenHistory
from raysgl.sampling.slot_settings import SlotSettings
from raysgl.sampling.token_masks import TokenMasks
from raysgl.sampling.transfer import upload

NO_IDS = np.zeros(0, np.int32)


@dataclass(frozen=True)
class Sampled:
    """tokens_L: int64 on the device. logprobs: of the rows `asking` (indices into L), in that order; None if no row asked."""

    tokens_L: torch.Tensor
    asking: list[int]
    logprobs: Logprobs | None


class Sampler:
    """Samples for the sequences of `num_slots` slots. Calls must be in the order in which steps run."""

    def __init__(self, num_slots: int, vocab_size: int, device: torch.device):
        self.settings = SlotSettings(num_slots, vocab_size)
        self.history = TokenHistory(num_slots, vocab_size, device)
        self.words = BadWords(num_slots, vocab_size, device)
        self._device = device

    def init_slot(
        self,
        slot: int,
        sampling: SamplingParams,
        seed: int,
        num_output: int = 0,
        prompt_ids: np.ndarray = NO_IDS,
        output_ids: np.ndarray = NO_IDS,
        stop_ids: tuple[int, ...] = (),
    ) -> None:
        """A sequence takes the slot. See `raysgl.engine.plan.SlotInit` for the arguments."""
        self.settings.set(slot, sampling, seed, num_output, stop_ids)
        if sampling.penalised:
            self.history.init(slot, prompt_ids, output_ids)
        if sampling.bad_words:
            self.words.init(slot, sampling.bad_words, output_ids)

    @torch.inference_mode()
    def sample(self, logits_LV: torch.Tensor, slots_L: np.ndarray, masks: TokenMasks | None = None) -> Sampled:
        """One token for each row; row i belongs to slot `slots_L[i]`, and no slot is there twice. May overwrite the logits."""
        settings = self.settings
        numbers_LC = settings.numbers_NC[slots_L]
        asking = np.flatnonzero(settings.logprobs_N[slots_L] >= 0)
        raw_RV = self._pick(logits_LV, asking, copy=True).float() if len(asking) else None
        logits_LV = self._adjust(logits_LV, slots_L, numbers_LC)
        if masks is not None:
            apply_token_mask(logits_LV, upload(masks.rows_R, self._device), upload(masks.bits_RW, self._device))
        greedy_L = settings.greedy_N[slots_L]
        if greedy_L.all():
            tokens_L = argmax(logits_LV)
        elif triton_sampling(self._device):
            numbers_LC[greedy_L, column.TEMPERATURE] = 0.0
            tokens_L = self._draw(logits_LV, slots_L, numbers_LC)
        elif not greedy_L.any():
            tokens_L = self._draw(logits_LV, slots_L, numbers_LC)
        else:
            tokens_L = argmax(logits_LV)
            drawing = np.flatnonzero(~greedy_L)
            drawn_R = self._draw(self._pick(logits_LV, drawing), slots_L[drawing], numbers_LC[drawing])
            tokens_L.index_copy_(0, upload(drawing, self._device), drawn_R)
        settings.sampled(slots_L)
        penalised = np.flatnonzero(settings.penalised_N[slots_L])
        if len(penalised):
            self.history.add(slots_L[penalised], self._pick(tokens_L, penalised))
        worded = np.flatnonzero(settings.worded_N[slots_L])
        if len(worded):
            self.words.add(slots_L[worded], self._pick(tokens_L, worded))
        logprobs = None
        if raw_RV is not None:
            counts = settings.logprobs_N[slots_L[asking]].tolist()
            logprobs = logprobs_of(raw_RV, self._pick(tokens_L, asking), counts, max(counts), self.asked(slots_L[asking]))
        return Sampled(tokens_L, asking.tolist(), logprobs)

    def asked(self, slots_R: np.ndarray) -> Asked | None:
        """The tokens whose log probabilities these slots' requests want beside the most probable ones."""
        counts = self.settings.asked_counts_N[slots_R]
        if not counts.any():
            return None
        return Asked(upload(self.settings.asked_ids.pick(slots_R), self._device), counts.tolist())

    def _pick(self, tensor: torch.Tensor, rows: np.ndarray, copy: bool = False) -> torch.Tensor:
        """These rows; the tensor itself when they are all of it, unless it must be a copy."""
        if len(rows) == tensor.shape[0]:
            return tensor.clone() if copy else tensor
        return tensor.index_select(0, upload(rows, self._device))

    def _put(self, tensor: torch.Tensor, rows: np.ndarray, values: torch.Tensor) -> torch.Tensor:
        """The tensor with these rows replaced; it is overwritten."""
        if len(rows) == tensor.shape[0]:
            return values
        return tensor.index_copy_(0, upload(rows, self._device), values)

    # ---------------------------------------------------------------- what changes logits

    def _adjust(self, logits_LV: torch.Tensor, slots_L: np.ndarray, numbers_LC: np.ndarray) -> torch.Tensor:
        """Penalties, bias and masks, in place; only the logits concerned are touched."""
        settings = self.settings
        logits_LV = logits_LV.contiguous()
        if settings.penalised_N[slots_L].any() or settings.biased_N[slots_L].any():
            logits_LV = logits_LV.to(torch.promote_types(logits_LV.dtype, torch.float32))  # half types would round the sums
        flat = logits_LV.view(-1)
        if (rows := np.flatnonzero(settings.penalised_N[slots_L])).size:
            penalties = numbers_LC[rows][:, [column.FREQUENCY, column.PRESENCE, column.REPETITION]]
            self.history.apply(logits_LV, rows, slots_L[rows], upload(penalties, self._device).to(logits_LV.dtype))
        if (rows := np.flatnonzero(settings.biased_N[slots_L])).size:
            places = self._places(rows, settings.bias_ids.pick(slots_L[rows]))
            values = upload(settings.bias_values.pick(slots_L[rows]).ravel(), self._device)
            flat.scatter_add_(0, places, values.to(logits_LV.dtype))
        if (rows := np.flatnonzero(settings.num_output_N[slots_L] < settings.min_new_N[slots_L])).size:
            flat.index_fill_(0, self._places(rows, settings.stop_ids.pick(slots_L[rows])), float("-inf"))
        if (rows := np.flatnonzero(settings.worded_N[slots_L])).size:
            self.words.apply(logits_LV, rows, slots_L[rows])
        if (rows := np.flatnonzero(settings.allowed_N[slots_L])).size:
            places = self._places(rows, settings.allowed_ids.pick(slots_L[rows]))
            kept = flat.take(places)
            logits_LV.index_fill_(0, upload(rows, self._device), float("-inf"))
            flat.scatter_(0, places, kept)
        return logits_LV

    def _places(self, rows_R: np.ndarray, ids_RB: np.ndarray) -> torch.Tensor:
        """Where these tokens' logits are in the flattened logits."""
        return upload((rows_R[:, None] * self.settings.vocab_size + ids_RB).ravel(), self._device)

    # ---------------------------------------------------------------- temperature, filters, noise

    def _draw(self, logits_LV: torch.Tensor, slots_L: np.ndarray, numbers_LC: np.ndarray) -> torch.Tensor:
        settings = self.settings
        numbers_LC[:, column.UNIFORM] = uniforms(settings.seeds_N[slots_L], settings.num_output_N[slots_L])
        numbers = upload(numbers_LC, self._device)
        if fused := triton_sampling(self._device):
            return fused.draw(logits_LV, *(numbers[:, index] for index in column.OF_THE_DRAW))
        x_LV = logits_LV.float()
        x_LV = x_LV.sub_(x_LV.amax(-1, keepdim=True)).div_(numbers[:, column.TEMPERATURE].float().unsqueeze(1))
        w_LV, total_L = filters.weights(x_LV)
        filtered = np.flatnonzero(settings.filtered_N[slots_L])
        least_L = None
        if len(filtered):
            max_top_k = int(numbers_LC[filtered, column.TOP_K].max())
            numbers_RC = self._pick(numbers, filtered)
            found_R = filters.thresholds(
                self._pick(x_LV, filtered),
                self._pick(total_L, filtered).float(),
                numbers_RC[:, column.TOP_P].float(),
                numbers_RC[:, column.TOP_K].long(),
                max_top_k,
            )
            least_L = torch.full_like(total_L, float("-inf"), dtype=torch.float32)
            least_L = self._put(least_L, filtered, found_R)
        if settings.min_p_N[slots_L].any():
            min_p_L = numbers[:, column.LOG_MIN_P].float()
            least_L = min_p_L if least_L is None else torch.maximum(least_L, min_p_L)
        if least_L is not None:
            w_LV[:, : x_LV.shape[1]].mul_(x_LV >= least_L.unsqueeze(1))
        return filters.draw(w_LV, numbers[:, column.UNIFORM])
