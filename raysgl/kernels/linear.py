"""A linear layer with what stands before and after it: RMSNorm, SiLU-mul, the residual addition.

In one launch where `linear_table` says that this is faster, else step by step. Legend: `raysgl.kernels.batch`; I input and O output features.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from raysgl.kernels import linear_table
from raysgl.kernels.activation import silu_mul
from raysgl.kernels.norm import rms_norm


def folded_linear(
    x_TI: torch.Tensor,
    weight_OI: torch.Tensor,
    *,
    norm_I: torch.Tensor | None = None,
    eps: float = 0.0,
    bias_O: torch.Tensor | None = None,
    silu: bool = False,
    residual_TO: torch.Tensor | None = None,
) -> torch.Tensor:
    """norm_I, eps: an RMSNorm of x comes first. silu: weight and bias hold gate and up one above the other, and the result is
    silu(gate) * up. residual_TO: the result is added to it, in place, and it is what is returned."""
    if config := linear_table.find(x_TI, weight_OI, silu):
        from raysgl.kernels.triton.linear import skinny_linear

        return skinny_linear(
            x_TI, weight_OI, norm_I=norm_I, eps=eps, bias_O=bias_O, silu_mul=silu, residual_TO=residual_TO, config=config
        )
    if norm_I is not None:
        x_TI = rms_norm(x_TI, norm_I, eps)
    if residual_TO is not None and bias_O is None and not silu:
        return torch.addmm(residual_TO, x_TI, weight_OI.t(), out=residual_TO)
    out_TO = F.linear(x_TI, weight_OI, bias_O)
    if silu:
        out_TO = silu_mul(out_TO)
    return out_TO if residual_TO is None else residual_TO.add_(out_TO)
