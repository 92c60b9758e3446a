"""FlashInfer's backend without a GPU: its two wrappers are played by torch, with what FlashInfer's documentation says of `plan` and `run`."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch

pytest.importorskip("triton")

from raysgl.kernels.attention import AttentionLayer, KVCache, UnsupportedAttention, create_backend, flash_infer
from raysgl.kernels.attention.flash_infer import refuses_model
from tests.kernels.test_attention import MIXES, check, naive
from tests.kernels.test_backends import skipping_what_is_unsupported
from tests.kernels.triton.test_backend import make_batch


class Wrapper:
    """Attends from CSR page tables, like `BatchPrefillWithPagedKVCacheWrapper` (causal) and, with one query a row, its decode twin."""

    def __init__(self, memory, layout, use_cuda_graph=False, **buffers):
        assert memory.dtype == torch.uint8 and layout == "NHD"
        self.buffers = (
            [buffers[f"paged_kv_{name}_buffer"] for name in ("indptr", "indices", "last_page_len")] if use_cuda_graph else []
        )
        self.plans = 0

    def take(
        self, starts, first, pages, last, heads, kv_heads, dim, page_size, *, sm_scale, window_left, logits_soft_cap, **types
    ):
        assert (
            all(t.dtype == torch.int32 for t in (starts, first, pages, last)) and types["q_data_type"] == types["kv_data_type"]
        )
        assert first.device.type == last.device.type == "cpu" and len(starts) == len(first) == len(last) + 1
        if self.buffers:  # a graph reads these addresses; nothing else may be remembered of tensors
            self.buffers[0].copy_(first)
            self.buffers[1][: len(pages)].copy_(pages)
            self.buffers[2].copy_(last)
        else:
            self.paged = (first, pages, last)
        self.starts, self.shape, self.page_size = starts, (heads, kv_heads, dim), page_size
        self.scale, self.window_left, self.soft_cap = sm_scale, window_left, logits_soft_cap
        self.plans += 1

    def run(self, q, kv, out):
        first, pages, last = self.buffers or self.paged
        assert q.shape[1:] == (self.shape[0], self.shape[2]) and kv[0].shape[1:] == (self.page_size, *self.shape[1:])
        window = None if self.window_left < 0 else self.window_left + 1
        for row in range(len(last)):
            own = pages[first[row] : first[row + 1]].long()
            length = (len(own) - 1) * self.page_size + int(last[row])
            keys, values = (part[own].flatten(0, 1)[:length].float() for part in kv)
            begin, end = int(self.starts[row]), int(self.starts[row + 1])
            for token in range(begin, end):
                position = length - (end - token)
                out[token] = naive(q[token].float(), keys, values, position, self.scale, window, self.soft_cap).to(out.dtype)


class Prefill(Wrapper):
    def plan(self, starts, *rest, causal, **options):
        assert causal
        self.take(starts, *rest, **options)


class Decode(Wrapper):
    def __init__(self, *arguments, use_tensor_cores, **options):
        super().__init__(*arguments, **options)
        self.use_tensor_cores = use_tensor_cores

    def plan(self, first, *rest, **options):
        assert self.use_tensor_cores == (rest[2] // rest[3] >= 4)
        self.take(torch.arange(len(first), dtype=torch.int32), first, *rest, **options)


@pytest.fixture
def library(monkeypatch):
    played = SimpleNamespace(BatchPrefillWithPagedKVCacheWrapper=Prefill, BatchDecodeWithPagedKVCacheWrapper=Decode)
    monkeypatch.setitem(sys.modules, "flashinfer", played)
    monkeypatch.setattr(flash_infer, "refuses", lambda *model: None)
    monkeypatch.setattr(flash_infer, "WORKSPACE_BYTES", 16)


def follow_the_lengths(device, dtype, heads, kv_heads, dim, windows, tolerance, capture):
    """`capture` the attention of a decode graph at lengths of one, then replay it at others: lengths and tables must be followed."""
    size, rows = 16, 5
    torch.manual_seed(0)
    cache = KVCache(1, 90, size, kv_heads, dim, dtype, device)
    cache.data.normal_()
    layers = [AttentionLayer(0, 0.125, window=window) for window in windows]
    graph = create_backend("flashinfer", cache, heads, windows).for_graph(rows)
    graph.prepare(np.ones(rows, dtype=np.int64))
    batch = make_batch([1] * rows, [1] * rows, device)
    batch.page_table_SP = torch.zeros(rows, 64, dtype=torch.int32, device=device)
    batch.kv_lens = [999] * rows
    q = torch.randn(rows, heads, dim).to(device, dtype)

    def step():
        graph.plan(batch)
        return [graph.attend(q, layer) for layer in layers]

    replay = capture(step)
    for lens in ([1, 1, 1, 1, 1], [40, 16, 3, 700, 1], [17, 64, 100, 1, 33]):
        table_SP = make_batch([1] * rows, lens, device).page_table_SP
        batch.page_table_SP[:, : table_SP.shape[1]].copy_(table_SP)
        graph.prepare(np.array(lens))
        for layer, out in zip(layers, replay(), strict=True):
            for row, length in enumerate(lens):
                pages = table_SP[row, : -(-length // size)].long()
                keys, values = (part[pages].flatten(0, 1).float() for part in cache.data[0])
                want = naive(q[row].float(), keys, values, length - 1, 0.125, layer.window, None)
                torch.testing.assert_close(out[row].float(), want, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("mix", MIXES)
@pytest.mark.parametrize(
    "shape", [(8, 2, 64, 16, None, None), (4, 2, 64, 1, 20, None), (4, 2, 64, 16, 30, 0.7), (2, 2, 64, 64, None, 1.5)], ids=str
)
def test_plans_say_what_the_rows_are(library, shape, mix):
    check("flashinfer", shape, MIXES[mix], "cpu")


def test_a_graph_reads_lengths_that_were_prepared_and_pages_that_are_in_the_table(library):
    follow_the_lengths("cpu", torch.float32, 4, 1, 64, (None, 20), 1e-5, lambda step: step() and step)


@pytest.mark.gpu
@pytest.mark.parametrize(("heads", "kv_heads", "dim"), [(32, 8, 128), (8, 1, 128), (4, 4, 128), (8, 2, 64)])
def test_decode_graphs(heads, kv_heads, dim):
    def capture(step):
        step(), step()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out = step()
        return lambda: graph.replay() or out

    with skipping_what_is_unsupported():
        follow_the_lengths("cuda", torch.bfloat16, heads, kv_heads, dim, (None,), 3e-2, capture)


def test_layers_of_a_kind_share_a_plan(library):
    cache = KVCache(4, 20, 16, 2, 64, torch.float32, "cpu")
    backend = create_backend("flashinfer", cache, 4, (None, 20))
    made = []
    backend._decode.make = lambda: made.append(backend._new_decode()) or made[-1]
    for _ in range(3):
        backend.plan(make_batch([1, 1], [30, 20], "cpu"))
        for index in range(4):
            backend.attend(torch.randn(2, 4, 64), AttentionLayer(index, 0.125, window=20 if index % 2 else None))
    assert [wrapper.plans for wrapper in made] == [3, 3]


def test_what_it_does_not_take_is_said():
    with pytest.raises(UnsupportedAttention, match="attention_backend flashinfer needs a GPU, but the device is cpu"):
        create_backend("flashinfer", KVCache(1, 1, 1, 1, 64, torch.bfloat16, "cpu"), 1)
    assert refuses_model(128, torch.bfloat16, False) is None
    assert "head dims 64, 128 and 256, but the model's is 96" in refuses_model(96, torch.bfloat16, False)
    assert "the model's dtype is float32" in refuses_model(128, torch.float32, False)
    assert "fp8_e4m3" in refuses_model(128, torch.bfloat16, True)
