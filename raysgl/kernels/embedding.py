"""Rows of a table of token embeddings, of which a rank may hold a part. Legend: `raysgl.kernels.batch`; V rows of this rank."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from raysgl.kernels.fused import triton_kernels


def embed_part(token_ids_T: torch.Tensor, weight_VD: torch.Tensor, first: int) -> torch.Tensor:
    """[T, D]: weight_VD[token - first], and zeros for tokens whose row another rank has."""
    if fused := triton_kernels(weight_VD.device, weight_VD.dtype):
        return fused.embed_part(token_ids_T, weight_VD, first)
    local_T = token_ids_T - first
    foreign_T = (local_T < 0) | (local_T >= len(weight_VD))
    return F.embedding(local_T.masked_fill(foreign_T, 0), weight_VD).masked_fill_(foreign_T.unsqueeze(1), 0)
