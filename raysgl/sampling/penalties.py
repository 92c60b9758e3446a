"""Frequency, presence and repetition penalties, from counts kept on the device.

Repetition (Keskar et al. 2019, section 4.1) covers prompt and output; frequency and presence are OpenAI's and cover the output.
Legend: R rows, V vocabulary, N slots.
"""

from __future__ import annotations

import numpy as np
import torch

from raysgl.sampling.transfer import upload


class TokenCounts:
    """Which tokens each slot's prompt has, and how often its output has each. Only slots that were `init` are meaningful.

    Two tables [N, V], made when the first sequence with a penalty comes: 39 + 156 MB for 256 slots and 151936 tokens.
    """

    def __init__(self, num_slots: int, vocab_size: int, device: torch.device):
        self._shape = (num_slots, vocab_size)
        self._device = device
        self._in_prompt_NV: torch.Tensor | None = None
        self._outputs_NV: torch.Tensor | None = None

    def _tables(self) -> tuple[torch.Tensor, torch.Tensor]:
        if self._in_prompt_NV is None or self._outputs_NV is None:
            self._in_prompt_NV = torch.zeros(self._shape, dtype=torch.bool, device=self._device)
            self._outputs_NV = torch.zeros(self._shape, dtype=torch.int32, device=self._device)
        return self._in_prompt_NV, self._outputs_NV

    def init(self, slot: int, prompt_ids: np.ndarray, output_ids: np.ndarray) -> None:
        """A sequence with a penalty takes the slot."""
        in_prompt_NV, outputs_NV = self._tables()
        prompt = upload(prompt_ids.astype(np.int64), self._device)
        output = upload(output_ids.astype(np.int64), self._device)
        in_prompt_NV[slot].zero_().index_fill_(0, prompt, True)
        outputs_NV[slot].zero_().index_add_(0, output, torch.ones_like(output, dtype=torch.int32))

    def add(self, slots_R: torch.Tensor, tokens_R: torch.Tensor) -> None:
        """Each of these slots has sampled a token. No slot may be there twice."""
        _, outputs_NV = self._tables()
        index_R = slots_R * self._shape[1] + tokens_R
        outputs_NV.view(-1).index_add_(0, index_R, torch.ones_like(index_R, dtype=torch.int32))

    def apply(
        self,
        logits_RV: torch.Tensor,
        slots_R: torch.Tensor,
        frequency_R: torch.Tensor,
        presence_R: torch.Tensor,
        repetition_R: torch.Tensor,
    ) -> torch.Tensor:
        """Logits with the penalties: repetition first, on the model's own logits, then the two that subtract."""
        in_prompt_NV, outputs_NV = self._tables()
        counts_RV = outputs_NV.index_select(0, slots_R)
        had_RV = counts_RV > 0
        repetition_R1 = repetition_R.unsqueeze(1)
        repeated_RV = torch.where(logits_RV > 0, logits_RV / repetition_R1, logits_RV * repetition_R1)
        logits_RV = torch.where(had_RV | in_prompt_NV.index_select(0, slots_R), repeated_RV, logits_RV)
        return logits_RV - (frequency_R.unsqueeze(1) * counts_RV + presence_R.unsqueeze(1) * had_RV)
