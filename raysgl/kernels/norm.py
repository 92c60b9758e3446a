"""Root mean square normalisation (Zhang and Sennrich 2019), with and without the residual addition before it."""

from __future__ import annotations

from functools import cache

import torch
import torch.nn.functional as F

from raysgl.kernels.fused import triton_kernels


def rms_norm(x_TD: torch.Tensor, weight_D: torch.Tensor, eps: float) -> torch.Tensor:
    """x / sqrt(mean(x^2) + eps) * weight over the last dimension; half types are normalised in float32."""
    if x_TD.is_cuda and x_TD.dim() == 2 and (fused := triton_kernels(x_TD.device, x_TD.dtype)):
        return fused.rms_norm(x_TD, weight_D, eps)
    if x_TD.is_cuda or x_TD.dtype in (torch.bfloat16, torch.float16):
        return F.rms_norm(x_TD, weight_D.shape, weight_D, eps)
    # On cpu torch makes seven operations of it; these four take 6 us instead of 11 for one token of 576.
    norm_T1 = torch.linalg.vector_norm(x_TD, dim=-1, keepdim=True)
    scale_T1 = torch.addcmul(_constant(eps, x_TD.dtype), norm_T1, norm_T1, value=1 / x_TD.shape[-1]).rsqrt_()
    return (x_TD * scale_T1).mul_(weight_D)


@cache
def _constant(value: float, dtype: torch.dtype) -> torch.Tensor:
    """On cpu. A tensor, since torch turns a Python number into one at every call."""
    return torch.tensor(value, dtype=dtype)


def add_rms_norm(
    x_TD: torch.Tensor, residual_TD: torch.Tensor, weight_D: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Add x to the residual stream in place, and normalise the sum. Returns (normalised, residual)."""
    if x_TD.is_cuda and (fused := triton_kernels(x_TD.device, x_TD.dtype)):
        return fused.add_rms_norm(x_TD, residual_TD, weight_D, eps)
    residual_TD.add_(x_TD)
    return rms_norm(residual_TD, weight_D, eps), residual_TD
