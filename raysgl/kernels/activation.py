"""Gated activation of the feed-forward block (Shazeer 2020)."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from raysgl.kernels.fused import triton_kernels


def silu_mul(gate_up_TF: torch.Tensor) -> torch.Tensor:
    """silu(gate) * up for [T, 2 F] holding gate and up side by side -> [T, F]."""
    if gate_up_TF.is_cuda and (fused := triton_kernels(gate_up_TF.device, gate_up_TF.dtype)):
        return fused.silu_mul(gate_up_TF)
    gate_TF, up_TF = gate_up_TF.chunk(2, dim=-1)
    return F.silu(gate_TF).mul_(up_TF)
