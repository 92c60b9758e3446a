"""Decode steps as CUDA graphs: one replay instead of hundreds of launches.

A graph is made for a number of rows; smaller steps are padded with rows of a slot that no sequence has. Everything that changes from
step to step is read on the device: slots and positions from two static rows of integers, token ids, page tables and lengths through
them. Graphs for a few sizes are made at start; a size that keeps coming back gets its own. Legend: `raysgl.kernels.batch`; B rows of
a graph.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from dataclasses import dataclass

import numpy as np
import torch

from raysgl.engine.slots import Slots
from raysgl.kernels.attention import AttentionBackend
from raysgl.kernels.batch import ForwardBatch

log = logging.getLogger(__name__)

FIRST_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
"""Made at start, up to `max_running`."""
STEP = 8
"""Sizes made later are multiples of this: cuBLAS and attention work in such tiles anyway."""
WANTED = 32
"""A size is made when so many steps would have been better off with it."""


@dataclass
class Graph:
    """A captured step: `inputs` are slots_B and positions_B, what it leaves are `logits_BV` and `tokens_B` (the argmax)."""

    graph: torch.cuda.CUDAGraph
    inputs_2B: torch.Tensor
    logits_BV: torch.Tensor
    tokens_B: torch.Tensor


class DecodeGraphs:
    """All graphs of one rank; they share one memory pool, so replays must follow one another in one stream."""

    def __init__(self, model: torch.nn.Module, attention: AttentionBackend, slots: Slots, max_rows: int, max_length: int):
        self._model, self._attention, self._slots = model, attention, slots
        self._max_rows, self._max_length = max_rows, max_length
        self._device = slots.last_token_N.device
        self._graphs: dict[int, Graph] = {}
        self._sizes: list[int] = []
        self._wanted: Counter[int] = Counter()
        self._pool = None

    def make_first(self) -> None:
        """The sizes that every start needs, the largest first so that the others fit its memory."""
        begin, before = time.perf_counter(), torch.cuda.memory_reserved(self._device)
        sizes = {size for size in FIRST_SIZES if size < self._max_rows} | {self._max_rows}
        for size in sorted(sizes, reverse=True):
            self._make(size)
        log.info(
            "%d decode graphs in %.1f s, %.2f GiB",
            len(sizes),
            time.perf_counter() - begin,
            (torch.cuda.memory_reserved(self._device) - before) / 2**30,
        )

    def run(self, slots_S: np.ndarray, positions_S: np.ndarray) -> Graph:
        """Replay: row i computes the token at positions_S[i] of slot slots_S[i]. Rows after those are padding."""
        rows = len(slots_S)
        graph = self._graphs[self._size(rows)]
        size = graph.inputs_2B.shape[1]
        pinned = torch.empty((2, size), dtype=torch.int64, pin_memory=True)
        host = pinned.numpy()
        host[0, :rows], host[0, rows:] = slots_S, self._slots.padding
        host[1, :rows], host[1, rows:] = positions_S, 0
        graph.inputs_2B.copy_(pinned, non_blocking=True)
        graph.graph.replay()
        return graph

    def _size(self, rows: int) -> int:
        fitting = next(size for size in self._sizes if size >= rows)
        ideal = rows if rows <= 2 else min(-(-rows // STEP) * STEP if rows > 4 else 4, self._max_rows)
        if ideal < fitting:
            self._wanted[ideal] += 1
            if self._wanted[ideal] >= WANTED:
                self._make(ideal)
                return ideal
        return fitting

    @torch.inference_mode()
    def _make(self, size: int) -> None:
        inputs = torch.zeros((2, size), dtype=torch.int64, device=self._device)
        inputs[0] = self._slots.padding
        stream = torch.cuda.current_stream(self._device)
        for _ in range(2):  # libraries choose and allocate what they need outside the graph
            self._step(inputs)
        stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, stream=stream, capture_error_mode="thread_local"):
            logits, tokens = self._step(inputs)
        self._pool = graph.pool()
        self._graphs[size] = Graph(graph, inputs, logits, tokens)
        self._sizes = sorted(self._graphs)

    def _step(self, inputs_2B: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        slots_B, positions_B = inputs_2B[0], inputs_2B[1]
        size, rows = self._slots.page_size, inputs_2B.shape[1]
        table_BP = self._slots.page_table_NW.index_select(0, slots_B)
        page_B = table_BP.gather(1, (positions_B // size).unsqueeze(1)).squeeze(1)
        batch = ForwardBatch(
            token_ids_T=self._slots.last_token_N.index_select(0, slots_B),
            positions_T=positions_B,
            write_slots_T=page_B.long() * size + positions_B % size,
            page_table_SP=table_BP,
            query_lens=[1] * rows,
            kv_lens=[self._max_length] * rows,
            query_lens_S=torch.ones(rows, dtype=torch.int32, device=self._device),
            kv_lens_S=(positions_B + 1).int(),
            num_decode=rows,
            logits_L=slots_B,
            page_size=size,
        )
        self._attention.plan(batch)
        logits_BV = self._model.logits(self._model(batch, self._attention))
        tokens_B = logits_BV.argmax(-1)
        self._slots.last_token_N.index_copy_(0, slots_B, tokens_B)
        return logits_BV, tokens_B
