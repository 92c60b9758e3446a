"""A bound on how much a model thinks: once it is spent, the tokens that end the reasoning are the only ones allowed. No torch.

Steps are *guided* (`raysgl.engine.guides`) only from the moment at which the budget may be spent; a model that ends before pays nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from raysgl.engine.plan_builder import Row
from raysgl.sampling.params import SamplingParams
from raysgl.sampling.token_masks import TokenMasks


@dataclass(slots=True)
class ThinkBudget:
    """Of one sequence. left: tokens of reasoning that may still come, but for those that end it. may_think: the token with which it
    may yet begin to think, as its first."""

    left: int
    end_ids: tuple[int, ...]
    may_think: int | None
    thinking: bool
    _last: list[int] = field(default_factory=list)

    @staticmethod
    def of(sampling: SamplingParams, output_ids: Iterable[int]) -> ThinkBudget | None:
        """output_ids: what it brought from another replica. None: without a bound, or it does not think."""
        most, begin = sampling.max_thinking_tokens, sampling.think_begin_id
        if most is None or not sampling.think_end_ids:
            return None
        budget = ThinkBudget(most, sampling.think_end_ids, begin, thinking=begin is None)
        for token in output_ids:
            budget.accept(token)
        return budget

    def accept(self, token: int) -> None:
        """The sequence has kept a token."""
        if self.may_think is not None:
            self.thinking, self.may_think = token == self.may_think, None
        elif self.thinking:
            self.left -= 1
            self._last = [*self._last, token][-len(self.end_ids) :]
            self.thinking = tuple(self._last) != self.end_ids

    def due(self, pending: int) -> bool:
        """Whether it may be spent when `pending` tokens more are known."""
        return (self.thinking or self.may_think is not None) and pending >= self.left

    @property
    def forced(self) -> int | None:
        """The token that must come now: the end's first, or where it has begun, its next."""
        if not self.thinking or self.left > 0:
            return None
        begun = range(min(len(self._last), len(self.end_ids) - 1), 0, -1)
        return self.end_ids[next((count for count in begun if tuple(self._last[-count:]) == self.end_ids[:count]), 0)]


def forced(masks: TokenMasks | None, rows: Iterable[Row], num_words: int) -> TokenMasks | None:
    """The masks of a guided step, and those of rows whose budgets are spent. (A constraint holds for what follows the reasoning: no row
    has both.) num_words: of a mask."""
    found: dict[int, int] = {}
    for index, seq in enumerate(row.seq for row in rows if row.samples):
        if seq.budget is not None and (token := seq.budget.forced) is not None:
            found[index] = token
    if not found:
        return masks
    bits_RW = np.zeros((len(found), num_words), np.uint32)
    for bits_W, token in zip(bits_RW, found.values()):
        bits_W[token >> 5] = 1 << (token & 31)
    rows_R, all_RW = np.array(list(found)), bits_RW.view(np.int32)
    if masks is None:
        return TokenMasks(rows_R, all_RW)
    order = np.argsort(rows_R := np.concatenate((masks.rows_R, rows_R)))
    return TokenMasks(rows_R[order], np.concatenate((masks.bits_RW, all_RW))[order])
