"""Words that must not be said: a token is masked where it would complete one. Legend: N slots, R rows, W words, K tokens."""

from __future__ import annotations

import numpy as np
import torch

from raysgl.sampling.params import MAX_BAD_WORD_TOKENS
from raysgl.sampling.transfer import upload

CONTEXT = MAX_BAD_WORD_TOKENS - 1
ANY = -1
"""In a word's beginning, where the word is shorter: matches every token."""
NONE = -2
"""Before the first output token: matches nothing but `ANY`."""


class BadWords:
    """The words of every slot and the last output tokens of it, which stay on the device since steps are planned ahead of them."""

    def __init__(self, num_slots: int, vocab_size: int, device: torch.device):
        self._vocab_size, self._device = vocab_size, device
        self._recent_NK: torch.Tensor | None = None
        self._num_slots = num_slots
        self._words: dict[int, np.ndarray] = {}

    def init(self, slot: int, words: tuple[tuple[int, ...], ...], output_ids: np.ndarray) -> None:
        """A sequence with `words` takes the slot."""
        if self._recent_NK is None:  # nearly nobody has bad words
            self._recent_NK = torch.full((self._num_slots, CONTEXT), NONE, dtype=torch.int64, device=self._device)
        recent = np.full(CONTEXT, NONE, np.int64)
        if len(output_ids):
            last = output_ids[-CONTEXT:]
            recent[-len(last) :] = last
        self._recent_NK[slot] = upload(recent, self._device)
        rows = np.full((len(words), MAX_BAD_WORD_TOKENS), ANY, np.int64)
        for row, word in zip(rows, words):
            row[-len(word) :] = word
        self._words[slot] = rows

    def add(self, slots_R: np.ndarray, tokens_R: torch.Tensor) -> None:
        """The rows have sampled these tokens."""
        slots = upload(slots_R.astype(np.int64), self._device)
        recent_RK = self._recent_NK.index_select(0, slots)
        self._recent_NK.index_copy_(0, slots, torch.cat((recent_RK[:, 1:], tokens_R.unsqueeze(1)), 1))

    def apply(self, logits_LV: torch.Tensor, rows_R: np.ndarray, slots_R: np.ndarray) -> None:
        """Mask, in place, the tokens that would complete a word. logits_LV must be contiguous."""
        lists = [self._words[slot] for slot in slots_R.tolist()]
        owners = np.repeat(np.arange(len(lists)), [len(words) for words in lists])
        words_WK = upload(np.concatenate(lists), self._device)
        recent_RK = self._recent_NK.index_select(0, upload(slots_R.astype(np.int64), self._device))
        recent_WK = recent_RK.index_select(0, upload(owners, self._device))
        begins_WK = words_WK[:, :-1]
        complete_W = ((begins_WK == recent_WK) | (begins_WK == ANY)).all(-1)
        places_W = upload(rows_R[owners].astype(np.int64) * self._vocab_size, self._device) + words_WK[:, -1]
        # Added, since several words may end in the same token.
        mask_W = torch.zeros(len(owners), dtype=logits_LV.dtype, device=self._device).masked_fill_(complete_W, float("-inf"))
        logits_LV.view(-1).scatter_add_(0, places_W, mask_W)
