"""Matrix times one vector: every weight is read once, blocks ahead of their use.

Two ways to be ahead, of which measurement chooses: one block, in registers, the first of them asked for before the kernel in
front is done; or several, copied asynchronously to shared memory.

Legend: I input and O output features. Public interface: `raysgl.kernels.triton.linear`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from raysgl.kernels.triton.prefetch import prefetch_rows
from raysgl.kernels.triton.runtime import launch_options


@dataclass(frozen=True)
class GemvConfig:
    """Outputs of a program, inputs it reads at a time, warps; stages: 1: one block ahead in registers, more: in shared memory."""

    block_out: int = 8
    block_in: int = 512
    num_warps: int = 4
    stages: int = 4


@triton.jit
def _weights(rows, i, left, EVEN_I: tl.constexpr):
    """The next block of rows that have `left` inputs left."""
    if EVEN_I:
        return tl.load(rows, eviction_policy="evict_first")
    else:
        return tl.load(rows, mask=(i < left)[None, :], other=0.0, eviction_policy="evict_first")


@triton.jit
def _input(x_ptr, norm_ptr, i, left, squares_I, EVEN_I: tl.constexpr, NORM: tl.constexpr):
    """(the next block of x, times the norm's weight; the sums of its squares)."""
    if EVEN_I:
        x_I = tl.load(x_ptr + i).to(tl.float32)
    else:
        x_I = tl.load(x_ptr + i, mask=i < left, other=0.0).to(tl.float32)
    if NORM:
        squares_I += x_I * x_I
        if EVEN_I:
            x_I *= tl.load(norm_ptr + i).to(tl.float32)
        else:
            x_I *= tl.load(norm_ptr + i, mask=i < left, other=0.0).to(tl.float32)
    return x_I, squares_I


@triton.jit
def _gemv_kernel(
    x_ptr, weight_ptr, norm_ptr, bias_ptr, residual_ptr, out_ptr, outputs, inputs, eps,
    BLOCK_O: tl.constexpr, BLOCK_I: tl.constexpr, STAGES: tl.constexpr, EVEN_O: tl.constexpr, EVEN_I: tl.constexpr,
    NORM: tl.constexpr, BIAS: tl.constexpr, RESIDUAL: tl.constexpr, SILU_MUL: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    o = tl.program_id(0) * BLOCK_O + tl.arange(0, BLOCK_O)
    i = tl.arange(0, BLOCK_I)
    # A program's last rows may lie past the matrix: it reads the last row instead, and does not store.
    o_read = o if EVEN_O else tl.minimum(o, outputs - 1)
    begins = weight_ptr + o_read.to(tl.int64) * inputs
    second = outputs.to(tl.int64) * inputs
    rows = begins[:, None] + i[None, :]
    rows_up = rows + second
    acc_OI = tl.zeros([BLOCK_O, BLOCK_I], tl.float32)
    up_OI = tl.zeros([BLOCK_O, BLOCK_I], tl.float32)
    squares_I = tl.zeros([BLOCK_I], tl.float32)
    if STAGES > 1:
        if PDL:
            prefetch_rows(begins, inputs, 2 * BLOCK_I)
            if SILU_MUL:
                prefetch_rows(begins + second, inputs, 2 * BLOCK_I)
            gdc_wait()
            gdc_launch_dependents()
        for start in tl.range(0, inputs, BLOCK_I, num_stages=STAGES):
            weight_OI = _weights(rows + start, i, inputs - start, EVEN_I)
            x_I, squares_I = _input(
                x_ptr + start, norm_ptr + start if NORM else x_ptr, i, inputs - start, squares_I, EVEN_I, NORM
            )
            acc_OI += weight_OI.to(tl.float32) * x_I[None, :]
            if SILU_MUL:
                more_OI = _weights(rows_up + start, i, inputs - start, EVEN_I)
                up_OI += more_OI.to(tl.float32) * x_I[None, :]
    else:
        weight_OI = _weights(rows, i, inputs, EVEN_I)
        more_OI = weight_OI
        if SILU_MUL:
            more_OI = _weights(rows_up, i, inputs, EVEN_I)
        if PDL:
            gdc_wait()
            gdc_launch_dependents()
        for start in tl.range(0, inputs, BLOCK_I, num_stages=1):
            ahead = start + BLOCK_I
            next_OI = _weights(rows + ahead, i, inputs - ahead, False)
            x_I, squares_I = _input(
                x_ptr + start, norm_ptr + start if NORM else x_ptr, i, inputs - start, squares_I, EVEN_I, NORM
            )
            acc_OI += weight_OI.to(tl.float32) * x_I[None, :]
            weight_OI = next_OI
            if SILU_MUL:
                next_OI = _weights(rows_up + ahead, i, inputs - ahead, False)
                up_OI += more_OI.to(tl.float32) * x_I[None, :]
                more_OI = next_OI
    out_O = tl.sum(acc_OI, axis=1)
    up_O = tl.sum(up_OI, axis=1)
    if NORM:
        scale = tl.rsqrt(tl.sum(squares_I, axis=0) / inputs + eps)
        out_O *= scale
        up_O *= scale
    if BIAS:
        out_O += tl.load(bias_ptr + o, mask=o < outputs, other=0.0).to(tl.float32)
        if SILU_MUL:
            up_O += tl.load(bias_ptr + outputs + o, mask=o < outputs, other=0.0).to(tl.float32)
    if SILU_MUL:
        out_O = out_O / (1.0 + tl.exp(-out_O)) * up_O
    if RESIDUAL:
        out_O += tl.load(residual_ptr + o, mask=o < outputs, other=0.0).to(tl.float32)
    tl.store(out_ptr + o, out_O.to(out_ptr.dtype.element_ty), mask=o < outputs)


def launch_gemv(
    x_1I: torch.Tensor,
    weight: torch.Tensor,
    out_1O: torch.Tensor,
    norm_I: torch.Tensor | None,
    bias: torch.Tensor | None,
    residual_1O: torch.Tensor | None,
    silu_mul: bool,
    eps: float,
    config: GemvConfig,
) -> None:
    """See `raysgl.kernels.triton.linear.skinny_linear`."""
    outputs, inputs = out_1O.shape[1], x_1I.shape[1]
    block_in = min(config.block_in, triton.next_power_of_2(inputs))
    _gemv_kernel[(triton.cdiv(outputs, config.block_out),)](
        x_1I, weight, norm_I, bias, residual_1O, out_1O, outputs, inputs, eps,
        BLOCK_O=config.block_out, BLOCK_I=block_in, STAGES=config.stages, EVEN_O=outputs % config.block_out == 0, EVEN_I=inputs % block_in == 0,
        NORM=norm_I is not None, BIAS=bias is not None, RESIDUAL=residual_1O is not None, SILU_MUL=silu_mul,
        num_warps=config.num_warps, **launch_options(),
    )  # fmt: skip
