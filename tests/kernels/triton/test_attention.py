"""Paged decode, prefill and cascade against attention in float64, on ragged rows."""

from __future__ import annotations

import random

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton")

from raysgl.kernels.triton.cascade import cascade_decode, plan_cascade
from raysgl.kernels.triton.decode import Tile, paged_decode, plan_decode
from raysgl.kernels.triton.merge import merge_state
from raysgl.kernels.triton.prefill import paged_prefill, plan_prefill
from raysgl.kernels.triton.work import list_work
from tests.kernels.triton.paged import assert_close, make_paged, reference

SMALL = Tile(16, 4, 2)
"""Small blocks: short rows take several."""

# (dtype, heads, key heads, head dim, page size, window, soft cap)
SHAPES = [
    (torch.float32, 2, 2, 64, 16, None, None),
    (torch.bfloat16, 8, 2, 128, 16, None, None),
    (torch.float16, 6, 2, 96, 1, None, None),
    (torch.bfloat16, 8, 1, 64, 64, 20, None),
    (torch.float32, 4, 2, 256, 16, None, 5.0),
    (torch.float32, 7, 1, 64, 16, 33, 8.0),
]


def queries(tokens: int, heads: int, dim: int, dtype: torch.dtype, device) -> torch.Tensor:
    return torch.randn(tokens, heads, dim, generator=torch.Generator().manual_seed(tokens)).to(dtype).to(device)


def int32(values: list[int], device) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32, device=device)


@pytest.mark.parametrize(("dtype", "heads", "kv_heads", "dim", "page_size", "window", "soft_cap"), SHAPES)
def test_decode(dtype, heads, kv_heads, dim, page_size, window, soft_cap, device):
    lens = [1, 130, 0, 64, 47]
    paged = make_paged(lens, page_size, kv_heads, dim, dtype, device)
    q = queries(len(lens), heads, dim, dtype, device)
    lse = torch.full(q.shape[:2], float("nan"), device=device)
    plan = plan_decode(int32(lens, device), kv_heads, window, extra=3)
    out = paged_decode(q, paged.keys, paged.values, paged.page_table_SP, plan, dim**-0.5, soft_cap, lse, SMALL)
    want, want_lse = reference(q, paged, [1] * len(lens), lens, dim**-0.5, window, soft_cap)
    assert_close(out, want, dtype)
    assert (lse[2] == float("-inf")).all()
    rows = [0, 1, 3, 4]
    assert_close(lse[rows], want_lse[rows], dtype)


@pytest.mark.parametrize(("dtype", "heads", "kv_heads", "dim", "page_size", "window", "soft_cap"), SHAPES)
def test_prefill(dtype, heads, kv_heads, dim, page_size, window, soft_cap, device):
    # A whole prompt, a chunk behind a prefix, one token, none (a padding row), a chunk that ends a page.
    query_lens, kv_lens = [37, 9, 1, 0, 16], [37, 58, 40, 0, 64]
    paged = make_paged(kv_lens, page_size, kv_heads, dim, dtype, device)
    q = queries(sum(query_lens), heads, dim, dtype, device)
    lse = torch.full(q.shape[:2], float("nan"), device=device)
    plan = plan_prefill(int32(query_lens, device), int32(kv_lens, device), len(q), heads // kv_heads, block_rows=32)
    out = paged_prefill(q, paged.keys, paged.values, paged.page_table_SP, plan, dim**-0.5, window, soft_cap, lse, SMALL)
    want, want_lse = reference(q, paged, query_lens, kv_lens, dim**-0.5, window, soft_cap)
    assert_close(out, want, dtype)
    assert_close(lse, want_lse, dtype)


@pytest.mark.parametrize(
    ("groups", "shared"),
    [
        ([0, 0, 0, 0], [4]),  # one prompt, many samples
        ([1, -1, 0, 1, 0, 1], [2, 3]),  # shuffled, and a row of its own
        ([2, 0, 2, 1], [1, 0, 5]),  # groups of one, and of nothing shared
        ([0] * 18 + [-1], [1]),  # more rows than a tile holds
    ],
)
def test_cascade(groups, shared, device):
    heads, kv_heads, dim, page_size = 8, 2, 64, 16
    random.seed(len(groups))
    lens = [max(shared[g] if g >= 0 else 0, 1) * page_size + random.randint(1, 40) for g in groups]
    paged = make_paged(lens, page_size, kv_heads, dim, torch.float32, device)
    for group, count in enumerate(shared):
        rows = [row for row, g in enumerate(groups) if g == group]
        for row in rows[1:]:
            paged.page_table_SP[row, :count] = paged.page_table_SP[rows[0], :count]
    q = queries(len(groups), heads, dim, torch.float32, device)
    lse = torch.full(q.shape[:2], float("nan"), device=device)
    plan = plan_cascade(
        int32(groups, device), int32(shared, device), int32(lens, device), page_size, heads // kv_heads, kv_heads, extra=2
    )
    out = cascade_decode(q, paged.keys, paged.values, paged.page_table_SP, plan, dim**-0.5, None, lse, SMALL)
    want, want_lse = reference(q, paged, [1] * len(lens), lens, dim**-0.5)
    assert_close(out, want, torch.float32)
    assert_close(lse, want_lse, torch.float32)
    alone = {row for row, g in enumerate(groups) if g < 0 or groups.count(g) < 2}
    assert [row for row, tokens in enumerate(plan.shared_S.tolist()) if not tokens] == sorted(
        alone | {row for row, g in enumerate(groups) if g >= 0 and not shared[g]}
    )


def test_merge_state(device):
    q = queries(3, 2, 64, torch.float32, device)
    paged = make_paged([40, 40, 40], 16, 2, 64, torch.float32, device)
    whole, whole_lse = reference(q, paged, [1] * 3, [40] * 3, 0.125)
    # Row 0 split in two, row 1 all on one side, row 2 empty on both.
    front, front_lse = reference(q, paged, [1] * 3, [16, 0, 0], 0.125)
    back = make_paged([24, 40, 0], 16, 2, 64, torch.float32, device)
    back.keys, back.values = paged.keys, paged.values
    back.page_table_SP = paged.page_table_SP.clone()
    back.page_table_SP[0, :2] = paged.page_table_SP[0, 1:3]
    rear, rear_lse = reference(q, back, [1] * 3, [24, 40, 0], 0.125)
    single = [t.float().to(device) for t in (front, front_lse, rear, rear_lse)]
    out, lse = merge_state(*single)
    assert_close(out[:2], whole[:2], torch.float32)
    assert_close(lse[:2], whole_lse[:2], torch.float32)
    assert (out[2] == 0).all()
    assert (lse[2] == float("-inf")).all()


@pytest.mark.parametrize("seed", range(6))
def test_work_covers_each_token_once(seed, device):
    """Every unit's tokens are in exactly one item, items fit the list, and results do not overlap."""
    random.seed(seed)
    units, extra = random.randint(1, 20), random.randint(1, 9)
    ends = [random.choice([0, 1, 63, 64, 65, random.randint(1, 5000)]) for _ in range(units)]
    begins = [random.randint(0, end) for end in ends] if seed % 2 else [0] * units
    weights = [random.randint(1, 5) for _ in range(units)]
    work = list_work(
        int32(ends, device), units + extra, begin_U=int32(begins, device), weight_U=int32(weights, device), extra=extra
    )
    first, items, base = work.first_U1.tolist(), work.items.T.tolist(), work.base_U.tolist()
    assert first[-1] <= work.capacity
    place = 0
    for unit in range(units):
        mine = items[first[unit] : first[unit + 1]]
        assert all(item[0] == unit for item in mine)
        assert [t for _, begin, end, _, _ in mine for t in range(begin, end)] == list(range(begins[unit], ends[unit]))
        assert base[unit] == place
        for item in mine:
            assert item[3] == place
            assert item[4] == (len(mine) == 1 and begins[unit] == 0)
            place += weights[unit]
