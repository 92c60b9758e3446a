"""Log probabilities for those who ask: of the model's own distribution.

They are the log-softmax of the raw logits, before penalties, bias, temperature and filters (vLLM's default too, and what OpenAI's
API gives at temperature 1): they say what the model thought, not what the sampler was told. Legend: R rows, N alternatives, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from raysgl.messages import TokenLogprob
from raysgl.sampling.transfer import download


@dataclass(frozen=True)
class Logprobs:
    """Of R tokens. counts: how many alternatives each row asked for; N is the most. asked_RM: log probabilities of the tokens that
    the request named, the first `asked_counts` of each row. ranks_R: 1 for the most probable token of the vocabulary."""

    tokens_R: torch.Tensor
    values_R: torch.Tensor
    top_ids_RN: torch.Tensor
    top_values_RN: torch.Tensor
    counts: list[int]
    asked_RM: torch.Tensor | None = None
    asked_counts: list[int] | None = None
    ranks_R: torch.Tensor | None = None

    def to_host(self) -> Logprobs:
        """See `transfer.download`."""
        return replace(
            self,
            tokens_R=download(self.tokens_R),
            values_R=download(self.values_R),
            top_ids_RN=download(self.top_ids_RN),
            top_values_RN=download(self.top_values_RN),
            asked_RM=None if self.asked_RM is None else download(self.asked_RM),
            ranks_R=None if self.ranks_R is None else download(self.ranks_R),
        )

    def entries(self) -> list[TokenLogprob]:
        """As they are sent."""
        rows = zip(
            self.tokens_R.tolist(), self.values_R.tolist(), self.top_ids_RN.tolist(), self.top_values_RN.tolist(), self.counts
        )
        entries = [
            TokenLogprob(token, value, list(zip(ids[:count], values[:count]))) for token, value, ids, values, count in rows
        ]
        if self.asked_RM is not None and self.asked_counts is not None:
            for entry, values, count in zip(entries, self.asked_RM.tolist(), self.asked_counts):
                entry.asked = values[:count]
        if self.ranks_R is not None:
            for entry, rank in zip(entries, self.ranks_R.tolist()):
                entry.rank = rank
        return entries


@dataclass(frozen=True)
class Asked:
    """Tokens that requests named: ids_RM, the first `counts` of each row."""

    ids_RM: torch.Tensor
    counts: list[int]

    def part(self, rows: slice) -> Asked:
        return Asked(self.ids_RM[rows], self.counts[rows])


def logprobs_of(
    logits_RV: torch.Tensor,
    tokens_R: torch.Tensor,
    counts: list[int],
    most: int,
    asked: Asked | None = None,
    ranked: bool = False,
) -> Logprobs:
    """Log probabilities of `tokens_R`, of the `most` most probable tokens of each row, best first, and of those asked for."""
    norm_R1 = logits_RV.logsumexp(-1, keepdim=True)
    chosen_R1 = logits_RV.gather(1, tokens_R.unsqueeze(1))
    top = logits_RV.topk(min(most, logits_RV.shape[1]), dim=-1)
    return Logprobs(
        tokens_R,
        (chosen_R1 - norm_R1).squeeze(1),
        top.indices,
        top.values - norm_R1,
        counts,
        logits_RV.gather(1, asked.ids_RM) - norm_R1 if asked else None,
        asked.counts if asked else None,
        (logits_RV > chosen_R1).sum(-1) + 1 if ranked else None,
    )


def join(parts: list[Logprobs]) -> Logprobs:
    """One after the other; all must have the same N and M."""
    asked = [part.asked_RM for part in parts if part.asked_RM is not None]
    ranks = [part.ranks_R for part in parts if part.ranks_R is not None]
    return Logprobs(
        torch.cat([part.tokens_R for part in parts]),
        torch.cat([part.values_R for part in parts]),
        torch.cat([part.top_ids_RN for part in parts]),
        torch.cat([part.top_values_RN for part in parts]),
        [count for part in parts for count in part.counts],
        torch.cat(asked) if asked else None,
        [count for part in parts for count in part.asked_counts or ()],
        torch.cat(ranks) if ranks else None,
    )
