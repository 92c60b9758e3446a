"""Rotary position embedding (Su et al. 2021) in the half-split layout that Hugging Face checkpoints use."""

from __future__ import annotations

import torch


def cos_sin(
    positions_T: torch.Tensor, inv_freq_H2: torch.Tensor, scale: float, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """Factors for `rotate`: cos_T1H and sin_T1H, the first half of sin negated. Angles are float32 whatever the dtype.

    They are made anew each step: a table for a context of 131072 would be larger than a KV page of a thousand requests.
    """
    angles_TH2 = positions_T.unsqueeze(1).to(torch.float32) * inv_freq_H2
    cos, sin = angles_TH2.cos() * scale, angles_TH2.sin() * scale
    return torch.cat((cos, cos), -1).unsqueeze(1).to(dtype), torch.cat((-sin, sin), -1).unsqueeze(1).to(dtype)


def rotate(x_TNH: torch.Tensor, cos_T1H: torch.Tensor, sin_T1H: torch.Tensor) -> torch.Tensor:
    """Rotate the pairs (i, i + H/2) of every head: x * cos + swap_halves(x) * signed sin."""
    first, second = x_TNH.chunk(2, dim=-1)
    return (x_TNH * cos_T1H).addcmul_(torch.cat((second, first), -1), sin_T1H)
