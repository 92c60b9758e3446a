"""The memory that pages live in."""

from __future__ import annotations

import math

import numpy as np
import torch


def page_bytes(num_layers: int, page_size: int, num_kv_heads: int, head_dim: int, dtype: torch.dtype) -> int:
    """Bytes of one page: keys and values of `page_size` tokens in all layers of one rank."""
    return num_layers * 2 * page_size * num_kv_heads * head_dim * dtype.itemsize


FP8 = torch.float8_e4m3fn
FP8_MAX = 448.0


def _quantise(x_TKH: torch.Tensor, scale_K: torch.Tensor) -> torch.Tensor:
    """As bytes. What is too large becomes the largest: torch would make it NaN."""
    return (x_TKH.float() / scale_K.unsqueeze(1)).clamp_(-FP8_MAX, FP8_MAX).to(FP8).view(torch.uint8)


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """On a CPU memory that the system clears when it is first touched: torch would write gigabytes at start (1.8 s for 4 GiB), and
    hold them even if no request ever comes to use them."""
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    return torch.from_numpy(np.zeros(math.prod(shape) * dtype.itemsize, np.uint8)).view(dtype).view(shape)


class KVCache:
    """One rank's keys and values.

    data: [layers, 2 (key, value), 1 + num_pages, page_size, kv_heads, head_dim]. Page 0 is padding: rows shorter than
    their neighbours point there. It starts as zeros since masked entries still enter products: they must be finite.
    dtype: of the model. With `quantised`, data is `FP8`, and what it holds are keys and values divided by
    scales: float32 [layers, 2, kv_heads], ones until somebody writes others (Micikevicius et al. 2022, "FP8 formats for deep learning").
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
        quantised: bool = False,
    ):
        self.dtype = dtype
        self.quantised = quantised
        self.num_pages = num_pages
        self.page_size = page_size
        self.num_kv_heads = num_kv_heads
        self.head_dim = head_dim
        shape = (num_layers, 2, 1 + num_pages, page_size, num_kv_heads, head_dim)
        self.data = _zeros(shape, FP8 if quantised else dtype, torch.device(device))
        self.scales = torch.ones(num_layers, 2, num_kv_heads, device=device) if quantised else None
        # Views made once: slicing costs microseconds, and a step would do it for every layer.
        self.keys = [layer[0].view(-1, num_kv_heads, head_dim) for layer in self.data]
        """For each layer [tokens, kv_heads, head_dim], indexed by ForwardBatch.write_slots_T."""
        self.values = [layer[1].view(-1, num_kv_heads, head_dim) for layer in self.data]
        # torch copies and gathers no 8-bit floats, but their bytes.
        plain = self.data.view(torch.uint8) if quantised else self.data
        self.pages = [layer.view(2 * (1 + num_pages), -1) for layer in plain]
        """For each layer [2 * pages, page_size * kv_heads * head_dim]: key pages, then value pages. Bytes, if quantised."""

    def write(self, index: int, slots_T: torch.Tensor, k_TKH: torch.Tensor, v_TKH: torch.Tensor) -> None:
        """Store keys and values of layer `index`. slots_T: int64, as ForwardBatch.write_slots_T."""
        keys, values = self.keys[index], self.values[index]
        if self.scales is not None:
            k_TKH, v_TKH = (_quantise(x, scale_K) for x, scale_K in zip((k_TKH, v_TKH), self.scales[index], strict=True))
            keys, values = keys.view(torch.uint8), values.view(torch.uint8)
        keys.index_copy_(0, slots_T, k_TKH)
        values.index_copy_(0, slots_T, v_TKH)

    def layer_scales(self, index: int) -> torch.Tensor | None:
        """float32 [2, kv_heads], or None: the cache holds keys and values as they are."""
        return None if self.scales is None else self.scales[index]

    @property
    def device(self) -> torch.device:
        return self.data.device

    @property
    def num_bytes(self) -> int:
        return self.data.numel() * self.data.element_size()
