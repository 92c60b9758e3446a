"""Frequency, presence and repetition penalties.

Repetition (Keskar et al. 2019, section 4.1) covers prompt and output; frequency and presence are OpenAI's and cover the output.
Only the logits of tokens that a sequence has had change, so only those are read and written: passes over the whole vocabulary would
cost 16 rows of 49152 logits 16 ms on one core, this costs less than one. Legend: R rows, H tokens had, V vocabulary, N slots.
"""

from __future__ import annotations

import numpy as np
import torch

from raysgl.sampling.transfer import upload

FIRST_WIDTH = 256


class TokenHistory:
    """The tokens each slot's sequence has had, on the device. Only slots that were `init` are meaningful.

    had_NH: each different token of the prompt, then the output's as they come; the rest of a row repeats one of them, which changes
    nothing, since what is done to a logit is a function of its token. counts_NV: how often the output has each token.
    Made when the first sequence with a penalty comes (counts_NV: 156 MB for 256 slots and 151936 tokens). Lengths are known on the host.
    """

    def __init__(self, num_slots: int, vocab_size: int, device: torch.device):
        self._num_slots, self._vocab_size, self._device = num_slots, vocab_size, device
        self._lengths_N = np.zeros(num_slots, np.int64)
        self._had_NH = torch.empty(0)
        self._counts_NV = torch.empty(0)

    def init(self, slot: int, prompt_ids: np.ndarray, output_ids: np.ndarray) -> None:
        """A sequence with a penalty takes the slot. It has had at least one token."""
        had = np.concatenate([np.unique(prompt_ids), output_ids]).astype(np.int64)
        assert len(had), "a sequence with a penalty came without its tokens"
        if not self._had_NH.numel():
            self._had_NH = torch.zeros(self._num_slots, FIRST_WIDTH, dtype=torch.int64, device=self._device)
            self._counts_NV = torch.zeros(self._num_slots, self._vocab_size, dtype=torch.int32, device=self._device)
        self._widen(len(had))
        self._lengths_N[slot] = len(had)
        self._had_NH[slot].fill_(int(had[0]))
        self._had_NH[slot, : len(had)] = upload(had, self._device)
        output = upload(output_ids.astype(np.int64), self._device)
        self._counts_NV[slot].zero_().index_add_(0, output, torch.ones_like(output, dtype=torch.int32))

    def add(self, slots_R: np.ndarray, tokens_R: torch.Tensor) -> None:
        """Each of these slots has sampled a token. No slot may be there twice."""
        lengths_R = self._lengths_N[slots_R]
        self._widen(int(lengths_R.max()) + 1)
        places_R = upload(slots_R.astype(np.int64) * self._had_NH.shape[1] + lengths_R, self._device)
        self._had_NH.view(-1).index_copy_(0, places_R, tokens_R)
        cells_R = upload(slots_R.astype(np.int64) * self._vocab_size, self._device) + tokens_R
        self._counts_NV.view(-1).index_add_(0, cells_R, torch.ones_like(cells_R, dtype=torch.int32))
        self._lengths_N[slots_R] += 1

    def apply(self, logits_LV: torch.Tensor, rows_R: np.ndarray, slots_R: np.ndarray, numbers_R3: torch.Tensor) -> None:
        """Change the logits of rows `rows_R`, in place: repetition first, on the model's own, then the two that subtract.

        logits_LV must be contiguous. numbers_R3: frequency, presence and repetition penalty.
        """
        vocab_size, width = self._vocab_size, int(self._lengths_N[slots_R].max())
        offsets_2R1 = upload(np.stack([rows_R, slots_R]).astype(np.int64), self._device).unsqueeze(2)
        had_RH = self._had_NH[:, :width].index_select(0, offsets_2R1[1].view(-1))
        counts_RH = self._counts_NV.view(-1).take(had_RH + offsets_2R1[1] * vocab_size)
        places_RH = had_RH.add_(offsets_2R1[0] * vocab_size)
        frequency_R1, presence_R1, repetition_R1 = numbers_R3.unsqueeze(2).unbind(1)
        x_RH = logits_LV.take(places_RH)
        x_RH = torch.where(x_RH > 0, x_RH / repetition_R1, x_RH * repetition_R1)
        x_RH -= frequency_R1 * counts_RH + presence_R1 * (counts_RH > 0)
        logits_LV.view(-1).scatter_(0, places_RH.view(-1), x_RH.view(-1))

    def _widen(self, length: int) -> None:
        width = self._had_NH.shape[1]
        if length > width:
            more = max(length, 2 * width) - width
            self._had_NH = torch.cat([self._had_NH, self._had_NH[:, -1:].expand(-1, more)], dim=1)
