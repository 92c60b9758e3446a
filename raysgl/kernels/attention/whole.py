"""Attention over whole texts, without a cache: each text is computed once and forgotten.

Texts lie end to end, longest first. Neighbours of about the same length are padded to one call of torch's fused attention; nothing
else of a step is padded. Legend: `raysgl.kernels.batch`; G texts of a group, L tokens of the longest of them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from raysgl.kernels.attention.interface import AttentionLayer

MOST_PADDING = 0.2
"""Share of a group's tokens that may be padding. One call over eight texts of 20 to 24 tokens takes a third of eight calls' time."""


@dataclass
class WholeBatch:
    """token_ids_T, positions_T, types_T: int64 on the device; types are those of token type embeddings. lengths: tokens of each text,
    longest first."""

    token_ids_T: torch.Tensor
    positions_T: torch.Tensor
    types_T: torch.Tensor
    lengths: list[int]


@dataclass(frozen=True)
class _Group:
    """Texts whose tokens are start to end. For texts of different lengths: rows_GL reads each padded place's token, valid_GL says
    which places are tokens."""

    start: int
    end: int
    count: int
    longest: int
    rows_GL: torch.Tensor | None = None
    valid_GL: torch.Tensor | None = None

    def padded(self, x_TNH: torch.Tensor) -> torch.Tensor:
        """[G, N, L, H]"""
        rows = x_TNH[self.start : self.end] if self.rows_GL is None else x_TNH.index_select(0, self.rows_GL.view(-1))
        return rows.view(self.count, self.longest, *x_TNH.shape[1:]).transpose(1, 2)

    def ragged(self, x_GNLH: torch.Tensor) -> torch.Tensor:
        """The inverse of `padded`, for the group's tokens."""
        x_GLNH = x_GNLH.transpose(1, 2)
        return x_GLNH.flatten(0, 1) if self.valid_GL is None else x_GLNH[self.valid_GL]


class WholeAttention:
    """See `AttentionBackend`. causal: tokens do not see those behind them."""

    capturable = False
    has_attend = False

    def __init__(self, causal: bool):
        self.causal = causal
        self._groups: list[_Group] = []

    def plan(self, batch: WholeBatch) -> None:
        self._groups = []
        begin, row = 0, 0
        while row < len(batch.lengths):
            count = self._group_size(batch.lengths, row)
            lengths = batch.lengths[row : row + count]
            self._groups.append(_group(begin, lengths, batch.token_ids_T.device))
            begin, row = begin + sum(lengths), row + count

    @staticmethod
    def _group_size(lengths: list[int], row: int) -> int:
        count, tokens = 1, lengths[row]
        while row + count < len(lengths):
            tokens += lengths[row + count]
            if tokens < (1 - MOST_PADDING) * lengths[row] * (count + 1):
                break
            count += 1
        return count

    def forward(self, q_TNH: torch.Tensor, k_TKH: torch.Tensor, v_TKH: torch.Tensor, layer: AttentionLayer) -> torch.Tensor:
        out_TNH = torch.empty_like(q_TNH)
        for group in self._groups:
            q, k, v = group.padded(q_TNH), group.padded(k_TKH), group.padded(v_TKH)
            out_TNH[group.start : group.end] = group.ragged(self._attend(q, k, v, group, layer))
        return out_TNH

    def _attend(
        self, q_GNLH: torch.Tensor, k_GKLH: torch.Tensor, v_GKLH: torch.Tensor, group: _Group, layer: AttentionLayer
    ) -> torch.Tensor:
        windowed = layer.window is not None and layer.window < group.longest
        if layer.soft_cap is not None or windowed:
            mask = self._mask(group, layer.window, q_GNLH.device)
        else:
            # A causal query sees no padding: that lies behind all tokens.
            mask = None if self.causal or group.valid_GL is None else group.valid_GL[:, None, None]
        # Shared heads are copied: of torch's kernels only some take them as they are, and the rest would make all scores at once.
        each = q_GNLH.shape[1] // k_GKLH.shape[1]
        k_GNLH, v_GNLH = (x if each == 1 else x.repeat_interleave(each, 1) for x in (k_GKLH, v_GKLH))
        if layer.soft_cap is not None:
            return _capped(q_GNLH, k_GNLH, v_GNLH, mask, layer)
        causal = self.causal and mask is None
        return F.scaled_dot_product_attention(q_GNLH, k_GNLH, v_GNLH, mask, is_causal=causal, scale=layer.scale)

    def _mask(self, group: _Group, window: int | None, device: torch.device) -> torch.Tensor:
        """Which keys (last dim) a query sees."""
        at_L = torch.arange(group.longest, device=device)
        behind_LL = at_L[:, None] - at_L
        seen_LL = behind_LL < (window or group.longest)
        if self.causal:
            return (seen_LL & (behind_LL >= 0))[None, None]
        seen_LL = seen_LL & (-behind_LL < (window or group.longest))
        return seen_LL[None, None] if group.valid_GL is None else seen_LL[None, None] & group.valid_GL[:, None, None]


def _group(begin: int, lengths: list[int], device: torch.device) -> _Group:
    end, count, longest = begin + sum(lengths), len(lengths), lengths[0]
    if lengths[-1] == longest:
        return _Group(begin, end, count, longest)
    lengths_G = torch.tensor(lengths, device=device)
    starts_G = begin + lengths_G.cumsum(0) - lengths_G
    at_L = torch.arange(longest, device=device)
    valid_GL = at_L < lengths_G[:, None]
    return _Group(begin, end, count, longest, torch.where(valid_GL, starts_G[:, None] + at_L, starts_G[:, None]), valid_GL)


def _capped(
    q_GNLH: torch.Tensor, k_GNLH: torch.Tensor, v_GNLH: torch.Tensor, mask: torch.Tensor, layer: AttentionLayer
) -> torch.Tensor:
    """With capped scores, which torch's fused attention does not have."""
    scores = layer.soft_cap * torch.tanh(q_GNLH @ k_GNLH.transpose(2, 3) * layer.scale / layer.soft_cap)
    return torch.softmax(scores.masked_fill(~mask, -torch.inf), -1) @ v_GNLH
