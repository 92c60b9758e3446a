"""Root mean square normalisation (Zhang and Sennrich 2019), with and without the residual addition before it."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def rms_norm(x_TD: torch.Tensor, weight_D: torch.Tensor, eps: float) -> torch.Tensor:
    """x / sqrt(mean(x^2) + eps) * weight over the last dimension; half types are normalised in float32."""
    return F.rms_norm(x_TD, weight_D.shape, weight_D, eps)


def add_rms_norm(
    x_TD: torch.Tensor, residual_TD: torch.Tensor, weight_D: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Add x to the residual stream in place, and normalise the sum. Returns (normalised, residual)."""
    residual_TD.add_(x_TD)
    return rms_norm(residual_TD, weight_D, eps), residual_TD
