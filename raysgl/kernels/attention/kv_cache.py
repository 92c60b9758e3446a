"""The memory that pages live in."""

from __future__ import annotations

import torch


def page_bytes(num_layers: int, page_size: int, num_kv_heads: int, head_dim: int, dtype: torch.dtype) -> int:
    """Bytes of one page: keys and values of `page_size` tokens in all layers of one rank."""
    return num_layers * 2 * page_size * num_kv_heads * head_dim * dtype.itemsize


class KVCache:
    """One rank's keys and values.

    data: [layers, 2 (key, value), 1 + num_pages, page_size, kv_heads, head_dim]. Page 0 is padding: rows shorter than
    their neighbours point there. It starts as zeros since masked entries still enter products: they must be finite.
    """

    def __init__(
        self,
        num_layers: int,
        num_pages: int,
        page_size: int,
        num_kv_heads: int,
        head_dim: int,
        dtype: torch.dtype,
        device: torch.device | str,
    ):
        self.num_pages = num_pages
        self.page_size = page_size
        self.num_kv_heads = num_kv_heads
        self.head_dim = head_dim
        shape = (num_layers, 2, 1 + num_pages, page_size, num_kv_heads, head_dim)
        self.data = torch.zeros(shape, dtype=dtype, device=device)
        # Views made once: slicing costs microseconds, and a step would do it for every layer.
        self.keys = [layer[0].view(-1, num_kv_heads, head_dim) for layer in self.data]
        """For each layer [tokens, kv_heads, head_dim], indexed by ForwardBatch.write_slots_T."""
        self.values = [layer[1].view(-1, num_kv_heads, head_dim) for layer in self.data]
        self.pages = [layer.view(2 * (1 + num_pages), -1) for layer in self.data]
        """For each layer [2 * pages, page_size * kv_heads * head_dim]: key pages, then value pages."""

    @property
    def dtype(self) -> torch.dtype:
        return self.data.dtype

    @property
    def device(self) -> torch.device:
        return self.data.device

    @property
    def num_bytes(self) -> int:
        return self.data.numel() * self.data.element_size()
