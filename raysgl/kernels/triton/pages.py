"""Page tables laid end to end, as FlashInfer wants them. Legend: `raysgl.kernels.batch`; S1 = S + 1."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from raysgl.kernels.triton.runtime import launch_options


@triton.jit(do_not_specialize=["stride_table"])
def _join_kernel(table_ptr, first_ptr, out_ptr, stride_table, BLOCK_P: tl.constexpr, PDL: tl.constexpr):
    row = tl.program_id(0)
    if PDL:
        gdc_wait()
        gdc_launch_dependents()
    first = tl.load(first_ptr + row)
    count = tl.load(first_ptr + row + 1) - first
    pages = table_ptr + row.to(tl.int64) * stride_table
    for begin in range(0, count, BLOCK_P):
        p = begin + tl.arange(0, BLOCK_P)
        tl.store(out_ptr + first + p, tl.load(pages + p, mask=p < count, other=0), mask=p < count)


def join_pages(page_table_SP: torch.Tensor, first_S1: torch.Tensor, out: torch.Tensor) -> None:
    """out[first_S1[s] : first_S1[s + 1]] = the first pages of row s. All int32, out large enough. One launch, any lengths."""
    _join_kernel[(page_table_SP.shape[0],)](
        page_table_SP, first_S1, out, page_table_SP.stride(0), BLOCK_P=256, num_warps=4, **launch_options()
    )
