"""Random paged caches, and attention over them in float64, one row and head at a time."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass
class Paged:
    """keys, values: [pages, page_size, K, H]. page_table_SP: int32, each row's pages in random order, page 0 unused."""

    keys: torch.Tensor
    values: torch.Tensor
    page_table_SP: torch.Tensor


def make_paged(lens: list[int], page_size: int, kv_heads: int, dim: int, dtype: torch.dtype, device, seed: int = 0) -> Paged:
    random = torch.Generator().manual_seed(seed)
    counts = [-(-n // page_size) for n in lens]
    # Page 0 and what follows a row's last token are large: reading them shows.
    cache = torch.randn(2, 2 + sum(counts), page_size, kv_heads, dim, generator=random)
    cache[:, 0] = 1e4
    ids = (torch.randperm(sum(counts), generator=random) + 1).to(torch.int32)
    table = torch.zeros(len(lens), max(counts, default=1) + 1, dtype=torch.int32)
    for row, (count, pages) in enumerate(zip(counts, ids.split(counts), strict=True)):
        table[row, :count] = pages
        if lens[row] % page_size:
            cache[:, pages[-1].item(), lens[row] % page_size :] = 1e4
    cache = cache.to(dtype).to(device)
    return Paged(cache[0], cache[1], table.to(device))


def reference(
    q_TNH: torch.Tensor,
    paged: Paged,
    query_lens: list[int],
    kv_lens: list[int],
    scale: float,
    window: int | None = None,
    soft_cap: float | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(o_TNH, lse_TN) in float64 on the CPU; the last query_lens[i] tokens of row i attend."""
    q_TNH = q_TNH.double().cpu()
    page_size, kv_heads = paged.keys.shape[1:3]
    out, lse = torch.zeros_like(q_TNH), torch.full(q_TNH.shape[:2], float("-inf"), dtype=torch.float64)
    token = 0
    for row, (count, length) in enumerate(zip(query_lens, kv_lens, strict=True)):
        pages = paged.page_table_SP[row, : -(-length // page_size)].long()
        keys = paged.keys[pages].flatten(0, 1)[:length].double().cpu()
        values = paged.values[pages].flatten(0, 1)[:length].double().cpu()
        for i in range(count if length else 0):
            position = length - count + i
            low = 0 if window is None else max(0, position - window + 1)
            for n in range(q_TNH.shape[1]):
                k = n // (q_TNH.shape[1] // kv_heads)
                score = keys[low : position + 1, k] @ q_TNH[token + i, n] * scale
                score = score if soft_cap is None else soft_cap * torch.tanh(score / soft_cap)
                out[token + i, n] = torch.softmax(score, 0) @ values[low : position + 1, k]
                lse[token + i, n] = torch.logsumexp(score, 0)
        token += count
    return out, lse


def assert_close(got: torch.Tensor, want: torch.Tensor, dtype: torch.dtype) -> None:
    """By the relative error of the whole tensor, and of its worst element: rounding of `dtype`."""
    got = got.double().cpu()
    assert torch.isfinite(got).all()
    relative, worst = {torch.float32: (1e-5, 1e-4), torch.float16: (2e-3, 1e-2), torch.bfloat16: (1e-2, 5e-2)}[dtype]
    error = (got - want).norm() / want.norm().clamp_min(1e-9)
    assert error < relative, f"relative error {error:.2e}"
    assert (got - want).abs().max() < worst * want.abs().max().clamp_min(1.0)
