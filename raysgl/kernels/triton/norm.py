"""RMSNorm, with and without the residual addition before it: one row per program. Reference: `raysgl.kernels.norm`.

Legend: `raysgl.kernels.batch`.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from raysgl.kernels.triton.runtime import launch_options


@triton.jit
def _rms_norm_kernel(
    x_ptr, residual_ptr, weight_ptr, out_ptr, stride_x, stride_residual, dim, eps,
    BLOCK_D: tl.constexpr, ADD: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    d = tl.arange(0, BLOCK_D)
    inside = d < dim
    weight = tl.load(weight_ptr + d, mask=inside, other=0.0).to(tl.float32)
    if PDL:
        gdc_wait()
        gdc_launch_dependents()
    x = tl.load(x_ptr + row * stride_x + d, mask=inside, other=0.0).to(tl.float32)
    if ADD:
        # The sum is rounded to the stream's type before it is normalised, as the unfused operations do.
        x += tl.load(residual_ptr + row * stride_residual + d, mask=inside, other=0.0).to(tl.float32)
        rounded = x.to(residual_ptr.dtype.element_ty)
        tl.store(residual_ptr + row * stride_residual + d, rounded, mask=inside)
        x = rounded.to(tl.float32)
    scale = tl.rsqrt(tl.sum(x * x, axis=0) / dim + eps)
    tl.store(out_ptr + row * dim + d, (x * scale * weight).to(out_ptr.dtype.element_ty), mask=inside)


def rms_norm(x_TD: torch.Tensor, weight_D: torch.Tensor, eps: float, out_TD: torch.Tensor | None = None) -> torch.Tensor:
    """x / sqrt(mean(x^2) + eps) * weight, in float32. Rows may be strided, their elements not. `out_TD` may be x itself."""
    return _launch(x_TD, None, weight_D, eps, out_TD)


def add_rms_norm(
    x_TD: torch.Tensor, residual_TD: torch.Tensor, weight_D: torch.Tensor, eps: float, out_TD: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Add x to the residual stream in place, and normalise the sum. Returns (normalised, residual). `out_TD` may be x itself."""
    return _launch(x_TD, residual_TD, weight_D, eps, out_TD), residual_TD


def _launch(
    x_TD: torch.Tensor, residual_TD: torch.Tensor | None, weight_D: torch.Tensor, eps: float, out_TD: torch.Tensor | None
) -> torch.Tensor:
    rows, dim = x_TD.shape
    out_TD = torch.empty((rows, dim), dtype=x_TD.dtype, device=x_TD.device) if out_TD is None else out_TD
    if x_TD.stride(1) != 1 or not out_TD.is_contiguous():
        raise ValueError("rms_norm needs rows without gaps")
    if rows:
        block = triton.next_power_of_2(dim)
        residual = x_TD if residual_TD is None else residual_TD
        _rms_norm_kernel[(rows,)](
            x_TD, residual, weight_D, out_TD, x_TD.stride(0), residual.stride(0), dim, eps,
            BLOCK_D=block, ADD=residual_TD is not None, num_warps=min(16, max(1, block // 512)), **launch_options(),
        )  # fmt: skip
    return out_TD
