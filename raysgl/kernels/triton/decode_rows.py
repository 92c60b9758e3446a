"""What a decode step computes in each row, in one launch instead of twelve. Reference: `raysgl.kernels.decode_rows`, and its legend."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from raysgl.kernels.decode_rows import DecodeRows
from raysgl.kernels.triton.runtime import launch_options

BLOCK_W = 512
"""Pages that a program copies at a time. Only those that a row has are copied: tables of long contexts are long."""


@triton.jit
def _decode_rows_kernel(
    slots_ptr, positions_ptr, last_ptr, table_ptr, token_ptr, write_ptr, len_ptr, out_ptr, width, page_size,
    BLOCK_W: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    w = tl.arange(0, BLOCK_W)
    if PDL:
        gdc_wait()
        gdc_launch_dependents()
    slot = tl.load(slots_ptr + row)
    position = tl.load(positions_ptr + row).to(tl.int32)
    page = position // page_size
    source = table_ptr + slot * width
    tl.store(token_ptr + row, tl.load(last_ptr + slot))
    tl.store(write_ptr + row, tl.load(source + page).to(tl.int64) * page_size + position % page_size)
    tl.store(len_ptr + row, position + 1)
    for start in range(0, page + 1, BLOCK_W):
        at = start + w
        tl.store(out_ptr + row * width + at, tl.load(source + at, mask=at < width), mask=at < width)


def decode_rows(
    slots_B: torch.Tensor,
    positions_B: torch.Tensor,
    last_token_N: torch.Tensor,
    page_table_NW: torch.Tensor,
    page_size: int,
    table_BW: torch.Tensor,
) -> DecodeRows:
    """See `raysgl.kernels.decode_rows.decode_rows`. The tables must be contiguous."""
    rows, width = table_BW.shape
    device = slots_B.device
    if (
        len(slots_B) != rows
        or page_table_NW.shape[1] != width
        or not (page_table_NW.is_contiguous() and table_BW.is_contiguous())
    ):
        raise ValueError(f"decode_rows needs contiguous tables of one width, and {rows} slots")
    tokens = torch.empty(rows, dtype=torch.int64, device=device)
    write_slots = torch.empty(rows, dtype=torch.int64, device=device)
    lens = torch.empty(rows, dtype=torch.int32, device=device)
    if rows:
        _decode_rows_kernel[(rows,)](
            slots_B, positions_B, last_token_N, page_table_NW, tokens, write_slots, lens, table_BW, width, page_size,
            BLOCK_W=BLOCK_W, num_warps=4, **launch_options(),
        )  # fmt: skip
    return DecodeRows(tokens, write_slots, lens)
