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


@pytest.mark.parametrize("cascade", [False, True])
def test_a_cache_of_8_bits(cascade, device):
    """Both backends store the same bytes and read them alike, with a scale for each key head; and near what was meant."""
    random = torch.Generator().manual_seed(1)
    query_lens, kv_lens = [1, 1, 1, 6], [60, 50, 90, 20]
    batch = make_batch(query_lens, kv_lens, device, {1: 2, 2: 2} if cascade else None)
    # Keys of one head and values of the other are far from 1; without their scales they would be cut off or vanish.
    size = torch.tensor([[[300.0], [1.0]], [[1.0], [1e-3]]])
    written = torch.randn(2, 31 * PAGE_SIZE, KV_HEADS, DIM, generator=random) * size.unsqueeze(1)
    q, k, v = torch.randn(9, HEADS + 2 * KV_HEADS, DIM, generator=random).split([HEADS, KV_HEADS, KV_HEADS], 1)
    q[:, : HEADS // 2] /= 300.0
    q, k, v = q.to(device), (k * size[0]).to(device), (v * size[1]).to(device)
    results, stored = {}, {}
    for name, backend_class, quantised in (
        ("exact", TorchBackend, False),
        ("torch", TorchBackend, True),
        ("triton", TritonBackend, True),
    ):
        cache = KVCache(1, 30, PAGE_SIZE, KV_HEADS, DIM, torch.float32, device, quantised)
        if quantised:
            cache.scales[0] = size.squeeze(-1).to(device) / 4
        cache.write(0, torch.arange(31 * PAGE_SIZE, device=device), *written.to(device))
        backend = backend_class(cache, HEADS)
        backend.plan(batch)
        if cascade and backend_class is TritonBackend:
            group = torch.zeros(3, dtype=torch.int32, device=device)
            backend.plan_cascade(group, torch.tensor([2], dtype=torch.int32, device=device))
        results[name] = backend.forward(q, k, v, AttentionLayer(0, 0.125)).double().cpu()
        stored[name] = cache.pages[0].cpu()
    assert torch.equal(stored["torch"], stored["triton"]) and stored["torch"].dtype == torch.uint8
    torch.testing.assert_close(results["triton"], results["torch"], atol=1e-6, rtol=1e-3)
    for heads in (slice(0, 2), slice(2, 4)):
        want = results["exact"][:, heads]
        assert (results["triton"][:, heads] - want).norm() < 0.06 * want.norm()
