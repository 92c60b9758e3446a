"""On a GPU: kernels in captured graphs, whose lengths, pages and groups change between replays, with and without dependent launch."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton")

from raysgl.kernels.triton import runtime
from raysgl.kernels.triton.argmax import argmax
from raysgl.kernels.triton.cascade import cascade_decode, plan_cascade
from raysgl.kernels.triton.decode import paged_decode, plan_decode
from raysgl.kernels.triton.linear import skinny_linear
from tests.kernels.triton.paged import assert_close, make_paged, reference

pytestmark = pytest.mark.gpu

HEADS, KV_HEADS, DIM, PAGE_SIZE = 8, 2, 128, 16


@pytest.fixture(params=[False, True], ids=["plain", "dependent"])
def pdl(request):
    runtime.enable_pdl(request.param)
    yield
    runtime.enable_pdl(False)


def capture(step):
    for _ in range(2):
        step()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = step()
    return graph, out


def test_decode_graph_follows_the_lengths(pdl, device):
    rows, pages = 5, 80
    dtype = torch.bfloat16
    paged = make_paged([pages * PAGE_SIZE], PAGE_SIZE, KV_HEADS, DIM, dtype, device)
    q = torch.randn(rows, HEADS, DIM, device=device, dtype=dtype)
    lens = torch.ones(rows, dtype=torch.int32, device=device)
    groups = torch.full((rows,), -1, dtype=torch.int32, device=device)
    shared = torch.zeros(rows, dtype=torch.int32, device=device)
    table = paged.page_table_SP.repeat(rows, 1)

    def step():
        plan = plan_decode(lens, KV_HEADS)
        cascade = plan_cascade(groups, shared, lens, PAGE_SIZE, HEADS // KV_HEADS, KV_HEADS)
        one = paged_decode(q, paged.keys, paged.values, table, plan, DIM**-0.5)
        return one, cascade_decode(q, paged.keys, paged.values, table, cascade, DIM**-0.5)

    graph, out = capture(step)
    paged.page_table_SP = table
    for new_lens, new_groups, new_shared in (
        ([1, 17, 300, 1280, 64], [-1] * 5, [0] * 5),
        ([1280, 0, 900, 901, 902], [0, -1, 1, 1, 0], [50, 56, 0, 0, 0]),
        ([700] * 5, [3] * 5, [0, 0, 0, 40, 0]),
    ):
        for tensor, values in ((lens, new_lens), (groups, new_groups), (shared, new_shared)):
            tensor.copy_(torch.tensor(values))
        q.normal_()
        graph.replay()
        want, _ = reference(q, paged, [1] * rows, new_lens, DIM**-0.5)
        assert_close(out[0], want, dtype)
        assert_close(out[1], want, dtype)


def test_chain_of_products(pdl, device):
    """Each kernel reads what the one before wrote, so a kernel that starts too early shows."""
    torch.manual_seed(0)
    dim, tokens = 1024, 4
    weights = [torch.randn(dim, dim, device=device, dtype=torch.bfloat16) / dim**0.5 for _ in range(6)]
    x = torch.zeros(tokens, dim, device=device, dtype=torch.bfloat16)

    def step():
        wide, narrow = x, x[:1]
        for weight in weights:
            wide, narrow = skinny_linear(wide, weight), skinny_linear(narrow, weight)
        return wide, narrow, argmax(wide)

    graph, out = capture(step)
    for _ in range(20):
        x.normal_()
        graph.replay()
        want = x.double()
        for weight in weights:
            want = torch.nn.functional.linear(want, weight.double())
        for got, rows in zip(out[:2], (want, want[:1]), strict=True):
            assert (got.double() - rows).norm() < 0.03 * rows.norm()
        assert torch.equal(out[2], out[0].argmax(-1)) or torch.equal(
            out[0].gather(1, out[2][:, None])[:, 0], out[0].max(-1).values
        )
