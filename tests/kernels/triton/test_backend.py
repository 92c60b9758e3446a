"""The backend against the torch backend, on steps that mix decode rows and chunks of prompts."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton")

from raysgl.kernels.attention import AttentionLayer, KVCache
from raysgl.kernels.attention.torch_backend import TorchBackend
from raysgl.kernels.batch import ForwardBatch
from raysgl.kernels.triton.backend import TritonBackend
from tests.kernels.triton.paged import assert_close

PAGE_SIZE, HEADS, KV_HEADS, DIM = 16, 4, 2, 64


def make_batch(query_lens: list[int], kv_lens: list[int], device, shared: dict[int, int] | None = None) -> ForwardBatch:
    """Rows of these lengths on pages of their own, but row r's first pages are row 0's if `shared[r]` says how many."""
    table = torch.zeros(len(kv_lens), max(-(-n // PAGE_SIZE) for n in kv_lens), dtype=torch.int32)
    page = 1
    for row, length in enumerate(kv_lens):
        count = -(-length // PAGE_SIZE)
        table[row, :count] = torch.arange(page, page + count)
        page += count
    for row, count in (shared or {}).items():
        table[row, :count] = table[0, :count]
    positions = [torch.arange(n - q, n) for q, n in zip(query_lens, kv_lens, strict=True)]
    slots = [table[row, p // PAGE_SIZE] * PAGE_SIZE + p % PAGE_SIZE for row, p in enumerate(positions)]
    tokens = sum(query_lens)
    return ForwardBatch(
        token_ids_T=torch.zeros(tokens, dtype=torch.int64, device=device),
        positions_T=torch.cat(positions).to(device),
        write_slots_T=torch.cat(slots).long().to(device),
        page_table_SP=table.to(device),
        query_lens=query_lens,
        kv_lens=kv_lens,
        query_lens_S=torch.tensor(query_lens, dtype=torch.int32, device=device),
        kv_lens_S=torch.tensor(kv_lens, dtype=torch.int32, device=device),
        num_decode=sum(1 for q in query_lens if q == 1),
        logits_L=torch.zeros(0, dtype=torch.int64, device=device),
        page_size=PAGE_SIZE,
    )


@pytest.mark.parametrize(
    ("query_lens", "kv_lens", "shared"),
    [
        ([1, 1, 20, 7], [33, 70, 20, 50], None),
        ([1, 1, 1], [17, 90, 1], None),
        ([18, 5], [18, 21], None),
        ([1, 1, 1, 4], [60, 50, 90, 9], {1: 2, 2: 2}),
    ],
)
def test_equals_the_torch_backend(query_lens, kv_lens, shared, device):
    random = torch.Generator().manual_seed(0)
    tokens = sum(query_lens)
    batch = make_batch(query_lens, kv_lens, device, shared)
    filled = torch.randn(2, 2, 32, PAGE_SIZE, KV_HEADS, DIM, generator=random)
    q, k, v = torch.randn(tokens, HEADS + 2 * KV_HEADS, DIM, generator=random).to(device).split([HEADS, KV_HEADS, KV_HEADS], 1)
    results = []
    for backend_class in (TorchBackend, TritonBackend):
        cache = KVCache(2, 31, PAGE_SIZE, KV_HEADS, DIM, torch.float32, device)
        cache.data.copy_(filled)
        backend = backend_class(cache, HEADS, (None, 24))
        backend.plan(batch)
        if shared and backend_class is TritonBackend:
            group = torch.tensor([0] * batch.num_decode, dtype=torch.int32, device=device)
            backend.plan_cascade(group, torch.tensor([2], dtype=torch.int32, device=device))
        out = [backend.forward(q, k, v, AttentionLayer(i, 0.125, window, 3.0)) for i, window in enumerate((None, 24))]
        results.append((torch.stack(out), cache.data))
    assert torch.equal(results[0][1], results[1][1])
    assert_close(results[1][0], results[0][0].double().cpu(), torch.float32)
