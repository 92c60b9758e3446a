"""A rank's part of the token embeddings in one launch instead of seven. Reference: `raysgl.kernels.embedding`."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from raysgl.kernels.triton.runtime import launch_options


@triton.jit(do_not_specialize=["first"])
def _embed_part_kernel(ids_ptr, weight_ptr, out_ptr, first, rows, dim, BLOCK_D: tl.constexpr, PDL: tl.constexpr):
    token = tl.program_id(0).to(tl.int64)
    d = tl.arange(0, BLOCK_D)
    if PDL:
        gdc_wait()
        gdc_launch_dependents()
    row = tl.load(ids_ptr + token) - first
    own = (row >= 0) & (row < rows)
    tl.store(out_ptr + token * dim + d, tl.load(weight_ptr + row * dim + d, mask=own & (d < dim), other=0.0), mask=d < dim)


def embed_part(token_ids_T: torch.Tensor, weight_VD: torch.Tensor, first: int) -> torch.Tensor:
    """See `raysgl.kernels.embedding.embed_part`. token_ids_T: int64. The weight must be contiguous."""
    tokens, (rows, dim) = len(token_ids_T), weight_VD.shape
    if not weight_VD.is_contiguous():
        raise ValueError("embed_part needs a contiguous weight")
    out_TD = torch.empty((tokens, dim), dtype=weight_VD.dtype, device=weight_VD.device)
    if tokens:
        block = triton.next_power_of_2(dim)
        _embed_part_kernel[(tokens,)](
            token_ids_T, weight_VD, out_TD, first, rows, dim, BLOCK_D=block, num_warps=min(8, max(1, block // 512)), **launch_options()
        )  # fmt: skip
    return out_TD
