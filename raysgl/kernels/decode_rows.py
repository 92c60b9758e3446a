"""What a decode step computes in each row, read on the device from the slots' state.

Legend: `raysgl.kernels.batch`; B rows of the step, N slots, W pages of the longest table.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from raysgl.kernels.fused import triton_sampling


class DecodeRows(NamedTuple):
    """token_ids_B: int64. write_slots_B: int64, where each row's key and value go. kv_lens_B: int32, with this token."""

    token_ids_B: torch.Tensor
    write_slots_B: torch.Tensor
    kv_lens_B: torch.Tensor


def decode_rows(
    slots_B: torch.Tensor,
    positions_B: torch.Tensor,
    last_token_N: torch.Tensor,
    page_table_NW: torch.Tensor,
    page_size: int,
    table_BW: torch.Tensor,
) -> DecodeRows:
    """Row i computes the token at positions_B[i] of slot slots_B[i] (both int64): the one sampled last.

    table_BW: int32, receives each row's pages. What is behind the row's last page in it means nothing.
    """
    if fused := triton_sampling(slots_B.device):
        return fused.decode_rows(slots_B, positions_B, last_token_N, page_table_NW, page_size, table_BW)
    torch.index_select(page_table_NW, 0, slots_B, out=table_BW)
    page_B = table_BW.gather(1, (positions_B // page_size).unsqueeze(1)).squeeze(1)
    return DecodeRows(
        last_token_N.index_select(0, slots_B), page_B.long() * page_size + positions_B % page_size, (positions_B + 1).int()
    )
