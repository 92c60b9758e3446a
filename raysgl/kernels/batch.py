"""The tensors of one step, as models and attention backends see them.

Legend: S rows (sequences), T tokens computed this step, P pages of the longest row's table, N query heads, K key/value
heads, H head dim, D model dim, V vocabulary, L rows whose logits are wanted.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass
class ForwardBatch:
    """Ragged rows laid end to end; the first `num_decode` rows compute one token each.

    token_ids_T, positions_T: int64 on the device.
    write_slots_T: int64, where each token's key and value go in the flattened cache: page * page_size + offset.
    page_table_SP: int32, pages of each row; entries past a row's last page are 0 (page 0 is padding, never handed out).
    query_lens, kv_lens: host lists; tokens computed by each row, and its length when they are in the cache.
    query_lens_S, kv_lens_S: the same, int32 on the device.
    logits_L: int64, indices into T whose logits are wanted.
    """

    token_ids_T: torch.Tensor
    positions_T: torch.Tensor
    write_slots_T: torch.Tensor
    page_table_SP: torch.Tensor
    query_lens: list[int]
    kv_lens: list[int]
    query_lens_S: torch.Tensor
    kv_lens_S: torch.Tensor
    num_decode: int
    logits_L: torch.Tensor
    page_size: int
