"""Gated activation. Reference: `raysgl.kernels.activation`. Legend: `raysgl.kernels.batch`; F feed-forward dim."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from raysgl.kernels.triton.runtime import launch_options


@triton.jit
def _silu_mul_kernel(gate_up_ptr, out_ptr, stride, dim, BLOCK_F: tl.constexpr, PDL: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    f = tl.program_id(1) * BLOCK_F + tl.arange(0, BLOCK_F)
    inside = f < dim
    if PDL:
        gdc_wait()
        gdc_launch_dependents()
    gate = tl.load(gate_up_ptr + row * stride + f, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(gate_up_ptr + row * stride + dim + f, mask=inside, other=0.0).to(tl.float32)
    # silu(gate) is rounded before the product, as the unfused operations do.
    silu = (gate / (1.0 + tl.exp(-gate))).to(out_ptr.dtype.element_ty).to(tl.float32)
    tl.store(out_ptr + row * dim + f, (silu * up).to(out_ptr.dtype.element_ty), mask=inside)


def silu_mul(gate_up_TF: torch.Tensor, out_TF: torch.Tensor | None = None) -> torch.Tensor:
    """silu(gate) * up for [T, 2 F] holding gate and up side by side -> [T, F]."""
    rows, dim = gate_up_TF.shape[0], gate_up_TF.shape[1] // 2
    out_TF = torch.empty((rows, dim), dtype=gate_up_TF.dtype, device=gate_up_TF.device) if out_TF is None else out_TF
    if rows:
        block = min(2048, triton.next_power_of_2(dim))
        _silu_mul_kernel[(rows, triton.cdiv(dim, block))](
            gate_up_TF, out_TF, gate_up_TF.stride(0), dim, BLOCK_F=block, num_warps=4, **launch_options()
        )
    return out_TF
