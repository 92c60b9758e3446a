"""Matrix times a few vectors (2 to 64): tiles of weights through shared memory and the matrix unit, inputs split over programs.

The weights take the matrix unit's long side (64 rows of wgmma), the tokens its short one. Where the outputs alone make too few
programs, each tile's inputs are split; the program that finishes last adds the partial sums in a fixed order, so results do
not change between runs. Legend: T tokens, I input and O output features. Public interface: `raysgl.kernels.triton.linear`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from raysgl.kernels.triton.prefetch import prefetch_rows
from raysgl.kernels.triton.runtime import launch_options, workspace


@dataclass(frozen=True)
class SkinnyConfig:
    """Outputs of a tile, inputs it reads at a time, programs that share a tile, warps, stages of the load pipeline."""

    block_out: int = 64
    block_in: int = 128
    splits: int = 1
    num_warps: int = 4
    num_stages: int = 4


@triton.jit
def _finish(
    acc_OT, up_OT, squares_T, norm_inputs, bias_ptr, residual_ptr, out_ptr, o, t, tokens, outputs, eps,
    NORM: tl.constexpr, BIAS: tl.constexpr, RESIDUAL: tl.constexpr, SILU_MUL: tl.constexpr,
):  # fmt: skip
    inside = (o < outputs)[:, None] & (t < tokens)[None, :]
    if NORM:
        scale_T = tl.rsqrt(squares_T / norm_inputs + eps)
        acc_OT *= scale_T[None, :]
        up_OT *= scale_T[None, :]
    if BIAS:
        acc_OT += tl.load(bias_ptr + o, mask=o < outputs, other=0.0).to(tl.float32)[:, None]
        if SILU_MUL:
            up_OT += tl.load(bias_ptr + outputs + o, mask=o < outputs, other=0.0).to(tl.float32)[:, None]
    if SILU_MUL:
        acc_OT = acc_OT / (1.0 + tl.exp(-acc_OT)) * up_OT
    at = t[None, :] * outputs + o[:, None]
    if RESIDUAL:
        acc_OT += tl.load(residual_ptr + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(out_ptr + at, acc_OT.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["tokens"])
def _skinny_kernel(
    x_ptr, weight_ptr, norm_ptr, bias_ptr, residual_ptr, out_ptr, part_ptr, counter_ptr, tokens, outputs, inputs, stride_x, eps,
    BLOCK_T: tl.constexpr, BLOCK_O: tl.constexpr, BLOCK_I: tl.constexpr, SPLITS: tl.constexpr, EVEN_O: tl.constexpr,
    EVEN_I: tl.constexpr, NORM: tl.constexpr, BIAS: tl.constexpr, RESIDUAL: tl.constexpr, SILU_MUL: tl.constexpr,
    PRECISION: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    tile = tl.program_id(0)
    split = tl.program_id(1)
    o = tile * BLOCK_O + tl.arange(0, BLOCK_O)
    t = tl.arange(0, BLOCK_T)
    i = tl.arange(0, BLOCK_I)
    o_read = o if EVEN_O else tl.minimum(o, outputs - 1)
    begins = weight_ptr + o_read.to(tl.int64) * inputs
    second = outputs.to(tl.int64) * inputs
    rows = begins[:, None] + i[None, :]
    rows_up = rows + second
    x_rows = x_ptr + t[:, None] * stride_x + i[None, :]
    span = tl.cdiv(tl.cdiv(inputs, BLOCK_I), SPLITS) * BLOCK_I
    low = split * span
    high = tl.minimum(low + span, inputs)
    if PDL:
        if low < inputs:
            prefetch_rows(begins + low, inputs - low, 2 * BLOCK_I)
            if SILU_MUL:
                prefetch_rows(begins + second + low, inputs - low, 2 * BLOCK_I)
        gdc_wait()
        gdc_launch_dependents()
    acc_OT = tl.zeros([BLOCK_O, BLOCK_T], tl.float32)
    up_OT = tl.zeros([BLOCK_O, BLOCK_T], tl.float32)
    squares_TI = tl.zeros([BLOCK_T, BLOCK_I], tl.float32)
    for start in range(low, high, BLOCK_I):
        valid = (t < tokens)[:, None]
        if EVEN_I:
            weight_OI = tl.load(rows + start, eviction_policy="evict_first")
        else:
            valid = valid & (i < inputs - start)[None, :]
            weight_OI = tl.load(rows + start, mask=(i < inputs - start)[None, :], other=0.0, eviction_policy="evict_first")
        x_TI = tl.load(x_rows + start, mask=valid, other=0.0)
        if NORM:
            if EVEN_I:
                norm_I = tl.load(norm_ptr + start + i)
            else:
                norm_I = tl.load(norm_ptr + start + i, mask=i < inputs - start, other=0.0)
            wide_TI = x_TI.to(tl.float32)
            squares_TI += wide_TI * wide_TI
            x_TI = (wide_TI * norm_I.to(tl.float32)[None, :]).to(weight_OI.dtype)
        acc_OT = tl.dot(weight_OI, tl.trans(x_TI), acc_OT, input_precision=PRECISION)
        if SILU_MUL:
            if EVEN_I:
                more_OI = tl.load(rows_up + start, eviction_policy="evict_first")
            else:
                more_OI = tl.load(rows_up + start, mask=(i < inputs - start)[None, :], other=0.0, eviction_policy="evict_first")
            up_OT = tl.dot(more_OI, tl.trans(x_TI), up_OT, input_precision=PRECISION)
    squares_T = tl.sum(squares_TI, axis=1)

    if SPLITS == 1:
        _finish(
            acc_OT, up_OT, squares_T, inputs, bias_ptr, residual_ptr, out_ptr, o, t, tokens, outputs, eps,
            NORM, BIAS, RESIDUAL, SILU_MUL,
        )  # fmt: skip
    else:
        # A part: sums of the tile, of its second half with SILU_MUL, and a row of squares.
        PART_ROWS: tl.constexpr = BLOCK_O * (2 if SILU_MUL else 1) + 1
        at = tl.arange(0, BLOCK_O)[:, None] * BLOCK_T + t[None, :]
        parts = part_ptr + tile * SPLITS * PART_ROWS * BLOCK_T
        mine = parts + split * PART_ROWS * BLOCK_T
        tl.store(mine + at, acc_OT)
        if SILU_MUL:
            tl.store(mine + BLOCK_O * BLOCK_T + at, up_OT)
        if NORM:
            tl.store(mine + (PART_ROWS - 1) * BLOCK_T + t, squares_T)
        # All of this program's stores come before its arrival is counted.
        tl.debug_barrier()
        arrived = tl.atomic_add(counter_ptr + tile, 1, sem="acq_rel")
        if arrived == SPLITS - 1:
            acc_OT = tl.zeros([BLOCK_O, BLOCK_T], tl.float32)
            up_OT = tl.zeros([BLOCK_O, BLOCK_T], tl.float32)
            squares_T = tl.zeros([BLOCK_T], tl.float32)
            for s in range(SPLITS):
                part = parts + s * PART_ROWS * BLOCK_T
                acc_OT += tl.load(part + at, cache_modifier=".cg")
                if SILU_MUL:
                    up_OT += tl.load(part + BLOCK_O * BLOCK_T + at, cache_modifier=".cg")
                if NORM:
                    squares_T += tl.load(part + (PART_ROWS - 1) * BLOCK_T + t, cache_modifier=".cg")
            _finish(
                acc_OT, up_OT, squares_T, inputs, bias_ptr, residual_ptr, out_ptr, o, t, tokens, outputs, eps,
                NORM, BIAS, RESIDUAL, SILU_MUL,
            )  # fmt: skip
            tl.store(counter_ptr + tile, 0)


def launch_skinny(
    x_TI: torch.Tensor,
    weight: torch.Tensor,
    out_TO: torch.Tensor,
    norm_I: torch.Tensor | None,
    bias: torch.Tensor | None,
    residual_TO: torch.Tensor | None,
    silu_mul: bool,
    eps: float,
    config: SkinnyConfig,
) -> None:
    """See `raysgl.kernels.triton.linear.skinny_linear`."""
    tokens, inputs = x_TI.shape
    outputs = out_TO.shape[1]
    device = x_TI.device
    block_tokens = max(16, triton.next_power_of_2(tokens))
    block_in = max(16, min(config.block_in, triton.next_power_of_2(inputs)))
    tiles = triton.cdiv(outputs, config.block_out)
    part = (config.block_out * (2 if silu_mul else 1) + 1) * block_tokens
    parts = counters = None
    if config.splits > 1:
        parts = workspace("skinny parts", tiles * config.splits * part, torch.float32, device)
        counters = workspace("skinny counters", tiles, torch.int32, device)
    _skinny_kernel[(tiles, config.splits)](
        x_TI, weight, norm_I, bias, residual_TO, out_TO, parts, counters, tokens, outputs, inputs, x_TI.stride(0), eps,
        BLOCK_T=block_tokens, BLOCK_O=config.block_out, BLOCK_I=block_in, SPLITS=config.splits,
        EVEN_O=outputs % config.block_out == 0, EVEN_I=inputs % block_in == 0, NORM=norm_I is not None, BIAS=bias is not None,
        RESIDUAL=residual_TO is not None, SILU_MUL=silu_mul, PRECISION="ieee" if x_TI.dtype == torch.float32 else "tf32",
        num_warps=config.num_warps, num_stages=config.num_stages, **launch_options(),
    )  # fmt: skip
