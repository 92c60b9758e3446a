"""The torch backend against a naive loop, on mixes of rows. All backends: test_backends.py."""

from __future__ import annotations

import random

import pytest
import torch

from raysgl.kernels.attention import AttentionLayer, KVCache, create_backend, page_bytes
from raysgl.kernels.attention import torch_backend as torch_backend_module
from raysgl.kernels.batch import ForwardBatch

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
SHAPES = [
    # (query heads, kv heads, head dim, page size, window, soft cap)
    (4, 4, 64, 16, None, None),
    (8, 1, 64, 16, None, None),
    (9, 3, 64, 16, None, None),
    (4, 2, 96, 1, None, None),
    (6, 3, 128, 8, None, None),
    (8, 2, 64, 16, 1, None),
    (4, 2, 64, 16, 20, None),
    (4, 2, 64, 1, 33, None),
    (4, 1, 128, 4, 64, None),
    (4, 2, 64, 16, None, 0.7),
    (8, 1, 128, 64, 20, 1.5),
]
MIXES = {
    # name: (lengths of decode rows, (tokens computed, length) of prefill rows)
    "one decode row": ([37], []),
    "decode rows of like length": ([33, 40, 41, 48], []),
    "decode rows of all lengths": ([1, 300, 5, 16, 17, 120, 290, 2], []),
    "new prompts": ([], [(1, 1), (40, 40), (16, 16)]),
    "chunks": ([], [(5, 70), (1, 33), (64, 128), (3, 3)]),
    "everything": ([70, 3, 200], [(20, 20), (7, 90), (90, 97)]),
}


def naive(q_NH, keys_BKH, values_BKH, position, scale, window, soft_cap):
    """One query token over the keys it may see."""
    first = 0 if window is None else max(0, position - window + 1)
    group = q_NH.shape[0] // keys_BKH.shape[1]
    keys = keys_BKH[first : position + 1].repeat_interleave(group, 1)
    values = values_BKH[first : position + 1].repeat_interleave(group, 1)
    scores_BN = torch.einsum("nh,bnh->bn", q_NH * scale, keys)
    weights_BN = (scores_BN if soft_cap is None else soft_cap * torch.tanh(scores_BN / soft_cap)).softmax(0)
    return torch.einsum("bn,bnh->nh", weights_BN, values)


def check(backend, shape, mix, device, dtype=torch.float32, atol=1e-5, seed=0):
    heads, kv_heads, dim, size, window, soft_cap = shape
    decode, prefill = mix
    torch.manual_seed(seed)
    counts = [1] * len(decode) + [count for count, _ in prefill]
    lens = decode + [length for _, length in prefill]
    needs = [-(-length // size) for length in lens]
    cache = KVCache(2, sum(needs) + 3, size, kv_heads, dim, dtype, device)
    # What nobody wrote must not matter: stale pages hold large numbers.
    cache.data.fill_(1e4)
    pages = list(range(1, cache.num_pages + 1))
    random.Random(seed).shuffle(pages)
    table = torch.zeros(len(lens), max(needs) + 2, dtype=torch.int32)
    keys, values, slots = [], [], []
    for row, (length, count) in enumerate(zip(lens, counts, strict=True)):
        own = torch.tensor([pages.pop() for _ in range(needs[row])])
        table[row, : len(own)] = own
        positions = torch.arange(length)
        slot = own[positions // size] * size + positions % size
        keys.append(torch.randn(length, kv_heads, dim).to(device, dtype))
        values.append(torch.randn(length, kv_heads, dim).to(device, dtype))
        before = slot[: length - count].to(device)
        cache.keys[1][before] = keys[-1][: length - count]
        cache.values[1][before] = values[-1][: length - count]
        slots.append(slot[length - count :])
    total = sum(counts)
    batch = ForwardBatch(
        token_ids_T=torch.zeros(total, dtype=torch.int64, device=device),
        positions_T=torch.cat([torch.arange(n - c, n) for c, n in zip(counts, lens, strict=True)]).to(device),
        write_slots_T=torch.cat(slots).to(device),
        page_table_SP=table.to(device),
        query_lens=counts,
        kv_lens=lens,
        query_lens_S=torch.tensor(counts, dtype=torch.int32, device=device),
        kv_lens_S=torch.tensor(lens, dtype=torch.int32, device=device),
        num_decode=len(decode),
        logits_L=torch.zeros(0, dtype=torch.int64, device=device),
        page_size=size,
    )
    q_TNH = torch.randn(total, heads, dim).to(device, dtype)
    new_keys = torch.cat([k[len(k) - c :] for k, c in zip(keys, counts, strict=True)])
    new_values = torch.cat([v[len(v) - c :] for v, c in zip(values, counts, strict=True)])
    layer = AttentionLayer(index=1, scale=dim**-0.5, window=window, soft_cap=soft_cap)
    attention = create_backend(backend, cache, heads, {None, window})
    attention.plan(batch)
    got = attention.forward(q_TNH, new_keys, new_values, layer)
    assert got.shape == q_TNH.shape
    expected, token = [], 0
    for row, count in enumerate(counts):
        for position in range(lens[row] - count, lens[row]):
            q_NH = q_TNH[token].float()
            expected.append(naive(q_NH, keys[row].float(), values[row].float(), position, layer.scale, window, soft_cap))
            token += 1
    torch.testing.assert_close(got.float(), torch.stack(expected), atol=atol, rtol=atol)
    torch.testing.assert_close(cache.keys[1][batch.write_slots_T], new_keys)
    torch.testing.assert_close(cache.values[1][batch.write_slots_T], new_values)
    assert (cache.data[0] == 1e4).all(), "another layer's pages were written"


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("mix", MIXES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_equals_naive_attention(shape, mix, device):
    # On a GPU the reference itself is rounded differently.
    check("torch", shape, MIXES[mix], device, atol=1e-5 if device == "cpu" else 1e-3)


@pytest.mark.parametrize("mix", MIXES)
def test_a_small_scratch_makes_more_groups_and_changes_nothing(monkeypatch, mix):
    monkeypatch.setitem(torch_backend_module.SCRATCH_BYTES, "cpu", 40_000)
    check("torch", (4, 2, 64, 16, None, None), MIXES[mix], "cpu")
    check("torch", (4, 2, 64, 16, 50, None), MIXES[mix], "cpu")


@pytest.mark.parametrize("device", DEVICES)
def test_random_batches(device):
    pick = random.Random(3)
    for seed in range(12):
        decode = [pick.randint(1, 400) for _ in range(pick.randint(0, 9))]
        prefill = [
            (count, count + pick.choice([0, 0, 1, 50])) for count in (pick.randint(1, 60) for _ in range(pick.randint(0, 3)))
        ]
        mix = (decode or [1], prefill)
        check(
            "torch",
            (4, 2, 64, pick.choice([1, 4, 16]), pick.choice([None, 30]), pick.choice([None, 2.0])),
            mix,
            device,
            atol=1e-5 if device == "cpu" else 1e-3,
            seed=seed,
        )


@pytest.mark.parametrize("device", DEVICES)
def test_bfloat16(device):
    check("torch", (8, 2, 64, 16, None, None), MIXES["everything"], device, torch.bfloat16, atol=3e-2)


def test_float64():
    check("torch", (8, 2, 64, 16, 30, None), MIXES["everything"], "cpu", torch.float64, atol=1e-5)


def test_page_bytes_is_what_a_page_takes():
    cache = KVCache(3, 7, 16, 2, 64, torch.bfloat16, "cpu")
    assert cache.num_bytes == (7 + 1) * page_bytes(3, 16, 2, 64, torch.bfloat16)


def test_unknown_backend_is_refused():
    with pytest.raises(
        ValueError, match="attention_backend is 'magic', but must be auto or one of flash_attn, flashinfer, torch, triton"
    ):
        create_backend("magic", KVCache(1, 1, 1, 1, 8, torch.float32, "cpu"), 1)
