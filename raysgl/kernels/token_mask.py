"""Logits of tokens that a grammar does not allow. R masked rows, L rows, V vocabulary, W words of 32 bits."""

from __future__ import annotations

import torch

from raysgl.kernels.fused import triton_kernels

_BITS = torch.tensor([1 << bit for bit in range(8)], dtype=torch.uint8)


def apply_token_mask(logits_LV: torch.Tensor, rows_R: torch.Tensor, bits_RW: torch.Tensor) -> None:
    """logits_LV[rows_R] become -inf, in place, where the bit of a token is 0. rows_R: int64, each row once. bits_RW: int32."""
    if logits_LV.is_cuda and (fused := triton_kernels(logits_LV.device, torch.bfloat16)):
        fused.apply_token_mask(logits_LV, rows_R, bits_RW)
        return
    bits = bits_RW.view(torch.uint8).unsqueeze(2) & _BITS.to(bits_RW.device)
    forbidden_RV = (bits == 0).flatten(1)[:, : logits_LV.shape[1]]
    if len(rows_R) == len(logits_LV):
        logits_LV.masked_fill_(forbidden_RV, float("-inf"))
    else:
        logits_LV.index_copy_(0, rows_R, logits_LV.index_select(0, rows_R).masked_fill_(forbidden_RV, float("-inf")))
