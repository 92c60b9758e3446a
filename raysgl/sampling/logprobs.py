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
    """Of R tokens. counts: how many alternatives each row asked for; N is the most."""

    tokens_R: torch.Tensor
    values_R: torch.Tensor
    top_ids_RN: torch.Tensor
    top_values_RN: torch.Tensor
    counts: list[int]

    def to_host(self) -> Logprobs:
        """See `transfer.download`."""
        return replace(
            self,
            tokens_R=download(self.tokens_R),
            values_R=download(self.values_R),
            top_ids_RN=download(self.top_ids_RN),
            top_values_RN=download(self.top_values_RN),
        )

    def entries(self) -> list[TokenLogprob]:
        """As they are sent."""
        rows = zip(
            self.tokens_R.tolist(), self.values_R.tolist(), self.top_ids_RN.tolist(), self.top_values_RN.tolist(), self.counts
        )
        return [TokenLogprob(token, value, list(zip(ids[:count], values[:count]))) for token, value, ids, values, count in rows]


def logprobs_of(logits_RV: torch.Tensor, tokens_R: torch.Tensor, counts: list[int], most: int) -> Logprobs:
    """Log probabilities of `tokens_R`, and of the `most` most probable tokens of each row, best first."""
    norm_R1 = logits_RV.logsumexp(-1, keepdim=True)
    values_R = logits_RV.gather(1, tokens_R.unsqueeze(1)).sub_(norm_R1).squeeze(1)
    top = logits_RV.topk(min(most, logits_RV.shape[1]), dim=-1)
    return Logprobs(tokens_R, values_R, top.indices, top.values - norm_R1, counts)


def join(parts: list[Logprobs]) -> Logprobs:
    """One after the other; all must have the same N."""
    return Logprobs(
        torch.cat([part.tokens_R for part in parts]),
        torch.cat([part.values_R for part in parts]),
        torch.cat([part.top_ids_RN for part in parts]),
        torch.cat([part.top_values_RN for part in parts]),
        [count for part in parts for count in part.counts],
    )
