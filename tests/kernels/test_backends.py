"""Every attention backend against float64, on random ragged batches: queries a key head, head dims, page sizes, windows, caps, 8 bits.

On a CPU: torch, and triton's kernels in the interpreter. On a GPU: all that are installed and take the combination; FlashInfer's kernels
only if they are compiled already.
"""

from __future__ import annotations

import itertools
import os
import random
from contextlib import contextmanager
from dataclasses import dataclass

import pytest
import torch

from raysgl.kernels.attention import BACKENDS, AttentionLayer, KVCache, UnsupportedAttention, create_backend
from raysgl.kernels.batch import ForwardBatch
from tests.conftest import have_gpu
from tests.kernels.triton.paged import assert_close


@dataclass(frozen=True)
class Case:
    """A model's attention, and what lies in the cache."""

    heads: int
    kv_heads: int
    dim: int
    page_size: int
    window: int | None
    soft_cap: float | None
    quantised: bool

    def __str__(self) -> str:
        return (
            f"{self.heads}over{self.kv_heads}x{self.dim}-page{self.page_size}-window{self.window}-cap{self.soft_cap}"
            + "-fp8" * self.quantised
        )


VARIANTS = [(None, None, False), (37, None, False), (None, 2.0, False), (64, 1.5, False), (None, None, True)]
"""Window, soft cap, 8 bits."""


def cases() -> list[Case]:
    """All pairs of queries a key head and head dim; the rest takes turns, so that all its values meet all of those."""
    pairs = itertools.product(((2, 2), (4, 2), (8, 2), (8, 1)), (64, 96, 128, 256))
    found = []
    for i, ((heads, kv_heads), dim) in enumerate(pairs):
        found += [Case(heads, kv_heads, dim, (1, 16, 64)[(i + j) % 3], *VARIANTS[(2 * i + j) % 5]) for j in range(2)]
    return found


@contextmanager
def skipping_what_is_unsupported():
    """Skip what a backend refuses, and FlashInfer's kernels that would have to be compiled first (minutes for each)."""
    os.environ.setdefault("FLASHINFER_DISABLE_JIT", "1")
    try:
        yield
    except UnsupportedAttention as reason:
        pytest.skip(str(reason))
    except RuntimeError as error:
        if type(error).__name__ != "MissingJITCacheError":
            raise
        pytest.skip("FlashInfer's kernels for this are not compiled")


def exact(q_tNH: torch.Tensor, keys_BKH: torch.Tensor, values_BKH: torch.Tensor, layer: AttentionLayer) -> torch.Tensor:
    """The last t tokens of a row attend over its B tokens, in float64 on the CPU."""
    q, keys, values = (x.double().cpu() for x in (q_tNH, keys_BKH, values_BKH))
    group, length = q.shape[1] // keys.shape[1], len(keys)
    scores = torch.einsum("tnh,bnh->ntb", q, keys.repeat_interleave(group, 1)) * layer.scale
    if layer.soft_cap is not None:
        scores = layer.soft_cap * torch.tanh(scores / layer.soft_cap)
    behind = torch.arange(length - len(q), length).unsqueeze(1) - torch.arange(length)
    hidden = (behind < 0) | (behind >= (layer.window or length))
    return torch.einsum(
        "ntb,bnh->tnh", scores.masked_fill(hidden, float("-inf")).softmax(-1), values.repeat_interleave(group, 1)
    )


def check(backend: str, case: Case, device: str, dtype: torch.dtype, counts: list[int], lens: list[int]) -> None:
    """Rows compute their last `counts` tokens; those that compute one and have more come first."""
    draw = random.Random(str(case))
    torch.manual_seed(draw.randrange(1 << 30))
    size = case.page_size
    needs = [-(-length // size) for length in lens]
    cache = KVCache(2, sum(needs) + 3, size, case.kv_heads, case.dim, dtype, device, case.quantised)
    if case.quantised:
        cache.scales[1] = torch.rand(2, case.kv_heads).to(device) / 50 + 0.01
    else:
        cache.data.fill_(1e4)  # what nobody wrote must not matter
    pages = draw.sample(range(1, cache.num_pages + 1), sum(needs))
    table_SP = torch.zeros(len(lens), max(needs) + 2, dtype=torch.int32)
    keys, values, slots = [], [], []
    for row, (length, count) in enumerate(zip(lens, counts, strict=True)):
        own = torch.tensor([pages.pop() for _ in range(needs[row])])
        table_SP[row, : len(own)] = own
        positions = torch.arange(length)
        slot = own[positions // size] * size + positions % size
        keys.append(torch.randn(length, case.kv_heads, case.dim).to(device, dtype))
        values.append(torch.randn(length, case.kv_heads, case.dim).to(device, dtype))
        cache.write(1, slot[: length - count].to(device), keys[-1][: length - count], values[-1][: length - count])
        slots.append(slot[length - count :])
    total = sum(counts)
    batch = ForwardBatch(
        token_ids_T=torch.zeros(total, dtype=torch.int64, device=device),
        positions_T=torch.cat([torch.arange(n - c, n) for c, n in zip(counts, lens, strict=True)]).to(device),
        write_slots_T=torch.cat(slots).to(device),
        page_table_SP=table_SP.to(device),
        query_lens=counts,
        kv_lens=lens,
        query_lens_S=torch.tensor(counts, dtype=torch.int32, device=device),
        kv_lens_S=torch.tensor(lens, dtype=torch.int32, device=device),
        num_decode=sum(count == 1 < length for count, length in zip(counts, lens, strict=True)),
        logits_L=torch.zeros(0, dtype=torch.int64, device=device),
        page_size=size,
    )
    q_TNH = torch.randn(total, case.heads, case.dim).to(device, dtype)
    new = [torch.cat([part[len(part) - c :] for part, c in zip(parts, counts, strict=True)]) for parts in (keys, values)]
    layer = AttentionLayer(1, case.dim**-0.5, case.window, case.soft_cap)
    attention = create_backend(backend, cache, case.heads, {None, case.window})
    attention.plan(batch)
    got = attention.forward(q_TNH, *new, layer)
    want = torch.cat([exact(*row, layer) for row in zip(q_TNH.split(counts), keys, values, strict=True)])
    if case.quantised:  # three bits of mantissa
        error = (got.double().cpu() - want).norm() / want.norm()
        assert error < 0.06, f"relative error {error:.2e}"
    else:
        assert_close(got, want, dtype)
        assert torch.equal(cache.keys[1][batch.write_slots_T], new[0]) and torch.equal(
            cache.values[1][batch.write_slots_T], new[1]
        )
        assert (cache.data[0] == 1e4).all(), "another layer's pages were written"


def ragged(case: Case, longest: int) -> tuple[list[int], list[int]]:
    """(counts, lens): some decode rows; chunks of prompts with and without a cached prefix, one of a single token."""
    draw = random.Random(f"rows of {case}")
    decode = [draw.randint(2, longest) for _ in range(draw.randint(2, 6))]
    chunks = [draw.randint(2, longest // 3) for _ in range(3)]
    prompts = [(chunk, chunk + cached) for chunk, cached in zip(chunks, (0, draw.randint(1, longest // 2), 17), strict=True)]
    prompts.append((1, 1))
    return [1] * len(decode) + [count for count, _ in prompts], decode + [length for _, length in prompts]


@pytest.mark.parametrize("case", cases(), ids=str)
def test_torch(case):
    check("torch", case, "cpu", torch.float32, *ragged(case, 200))


@pytest.mark.parametrize("case", cases()[1::3], ids=str)
def test_triton_interpreted(case):
    pytest.importorskip("triton")
    if have_gpu():
        pytest.skip("the GPU's own test does this")
    check("triton", case, "cpu", torch.float32, *ragged(case, 70))


@pytest.mark.gpu
@pytest.mark.parametrize("case", cases()[::2], ids=str)
@pytest.mark.parametrize("backend", sorted(BACKENDS))
def test_on_a_gpu(backend, case):
    with skipping_what_is_unsupported():
        check(backend, case, "cuda", torch.bfloat16, *ragged(case, 1500))
        counts, lens = ragged(case, 3000)
        decodes = sum(count == 1 < length for count, length in zip(counts, lens, strict=True))
        check(backend, case, "cuda", torch.bfloat16, counts[:decodes], lens[:decodes])
        check(backend, case, "cuda", torch.bfloat16, counts[decodes:], lens[decodes:])


@pytest.mark.gpu
@pytest.mark.parametrize("backend", sorted(BACKENDS))
@pytest.mark.parametrize("window", [None, 50])
def test_the_model_that_is_measured_on_a_gpu(backend, window):
    case = Case(32, 8, 128, 16, window, None, False)
    with skipping_what_is_unsupported():
        for seed in range(4):
            draw = random.Random(seed)
            decode = [draw.randint(2, 2000) for _ in range(draw.choice([0, 1, 40]))]
            prompts = [(draw.randint(2, 600), draw.choice([0, 33, 900])) for _ in range(draw.choice([1, 4]))]
            check(
                backend,
                case,
                "cuda",
                torch.bfloat16,
                [1] * len(decode) + [c for c, _ in prompts],
                decode + [sum(p) for p in prompts],
            )
