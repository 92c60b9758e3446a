"""Masks of grammars. Reference: `raysgl.kernels.token_mask`. Legend: there."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from raysgl.kernels.triton.runtime import launch_options

BLOCK_V = 4096


@triton.jit
def _token_mask_kernel(
    logits_ptr, rows_ptr, bits_ptr, stride_l, stride_r, vocab_size, BLOCK_V: tl.constexpr, PDL: tl.constexpr
):  # fmt: skip
    v = tl.program_id(1) * BLOCK_V + tl.arange(0, BLOCK_V)
    inside = v < vocab_size
    if PDL:
        gdc_wait()
        gdc_launch_dependents()
    row = tl.load(rows_ptr + tl.program_id(0))
    word = tl.load(bits_ptr + tl.program_id(0) * stride_r + v // 32, mask=inside, other=-1)
    forbidden = inside & (((word >> (v % 32)) & 1) == 0)
    nothing = tl.full((BLOCK_V,), float("-inf"), tl.float32).to(logits_ptr.dtype.element_ty)
    tl.store(logits_ptr + row * stride_l + v, nothing, mask=forbidden)


def apply_token_mask(logits_LV: torch.Tensor, rows_R: torch.Tensor, bits_RW: torch.Tensor) -> None:
    """Only what is forbidden is written; a block of tokens that are all allowed costs the reading of its bits."""
    vocab_size = logits_LV.shape[1]
    _token_mask_kernel[(len(rows_R), triton.cdiv(vocab_size, BLOCK_V))](
        logits_LV, rows_R, bits_RW, logits_LV.stride(0), bits_RW.stride(0), vocab_size, BLOCK_V=BLOCK_V, **launch_options()
    )
