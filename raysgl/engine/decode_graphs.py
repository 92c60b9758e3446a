"""Decode steps as CUDA graphs: one replay instead of hundreds of launches.

A graph is made for a number of rows; smaller steps are padded with rows of a slot that no sequence has. Everything that changes from
step to step is read on the device: slots and positions from two static rows of integers, token ids, page tables and lengths through
them. Graphs for a few sizes are made at start; a size that keeps coming back gets its own. Rows that share long prefixes have graphs of
their own, with cascade attention; who shares what is read on the device too. Legend: `raysgl.kernels.batch`; B rows of a graph,
J groups.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch

from raysgl.engine.slots import Slots
from raysgl.kernels.attention import AttentionBackend, GraphAttention, HostPlanned
from raysgl.kernels.batch import ForwardBatch
from raysgl.kernels.decode_rows import decode_rows

if TYPE_CHECKING:
    from raysgl.kernels.triton.backend import TritonBackend

T = TypeVar("T")

log = logging.getLogger(__name__)

FIRST_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
"""Made at start, up to `max_running`."""
STEP = 8
"""Sizes made later are multiples of this: cuBLAS and attention work in such tiles anyway."""
WANTED = 32
"""A size is made when so many steps would have been better off with it."""


CASCADE_FROM = 8
"""With fewer rows there is too little to share."""


@dataclass
class Graph:
    """A captured step. inputs_CB: slots and positions, and with cascade attention each row's group and each group's shared pages
    (B of them). It leaves part_BV (this rank's logits) and tokens_B (the argmax of all ranks'). planned: attention that must know
    the lengths before a replay."""

    graph: torch.cuda.CUDAGraph
    inputs_CB: torch.Tensor
    part_BV: torch.Tensor
    tokens_B: torch.Tensor
    planned: GraphAttention | None


def capture(step: Callable[[], T], pool, device: torch.device) -> tuple[torch.cuda.CUDAGraph, T, Any]:
    """Record `step`, whose launches go to the current stream. Returns the graph, what the step returned, and the memory pool."""
    stream = torch.cuda.current_stream(device)
    for _ in range(2):  # libraries choose and allocate what they need outside the graph
        step()
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
        left = step()
    return graph, left, graph.pool()


def _dependent_launch() -> AbstractContextManager:
    from raysgl.kernels.triton import runtime

    return runtime.dependent_launch()


class DecodeGraphs:
    """All graphs of one rank; they share one memory pool, so replays must follow one another in one stream.

    attention: rows of a graph -> its backend. dependent_rows: graphs of up to so many are made with dependent launch.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        attention: Callable[[int], AttentionBackend],
        cascade: TritonBackend | None,
        slots: Slots,
        max_rows: int,
        max_length: int,
        dependent_rows: int = 0,
    ):
        self._model, self._attention, self._cascade, self._slots = model, attention, cascade, slots
        self._max_rows, self._max_length, self._dependent_rows = max_rows, max_length, dependent_rows
        self._device = slots.last_token_N.device
        self._table_BW = torch.zeros(max_rows, slots.width, dtype=torch.int32, device=self._device)
        self._ones_B = torch.ones(max_rows, dtype=torch.int32, device=self._device)
        self._graphs: dict[bool, dict[int, Graph]] = {False: {}, True: {}}
        self._wanted: Counter[tuple[int, bool]] = Counter()
        self.pool = None
        """Memory that all graphs of this rank share."""

    def make_first(self) -> None:
        """The sizes that every start needs, the largest first so that the others fit its memory."""
        begin, before = time.perf_counter(), torch.cuda.memory_reserved(self._device)
        sizes = {size for size in FIRST_SIZES if size < self._max_rows} | {self._max_rows}
        for size in sorted(sizes, reverse=True):
            self._make(size, False)
        if self._cascade is not None and self._max_rows >= CASCADE_FROM:
            self._make(self._max_rows, True)
        log.info(
            "%d decode graphs in %.1f s, %.2f GiB",
            sum(map(len, self._graphs.values())),
            time.perf_counter() - begin,
            (torch.cuda.memory_reserved(self._device) - before) / 2**30,
        )

    def run(self, slots_S: np.ndarray, positions_S: np.ndarray, groups_S: np.ndarray, shared_pages_J: np.ndarray) -> Graph:
        """Replay: row i computes the token at positions_S[i] of slot slots_S[i]. Rows after those are padding.

        groups_S and shared_pages_J are `StepPlan`'s, empty where nothing is shared.
        """
        rows = len(slots_S)
        cascade = bool(len(groups_S)) and self._cascade is not None and rows >= CASCADE_FROM
        graph = self._graphs[cascade][self._size(rows, cascade)]
        pinned = torch.empty(graph.inputs_CB.shape, dtype=torch.int64, pin_memory=True)
        host = pinned.numpy()
        host[0, :rows], host[0, rows:] = slots_S, self._slots.padding
        host[1, :rows], host[1, rows:] = positions_S, 0
        if cascade:
            host[2, :rows], host[2, rows:] = groups_S, -1
            host[3, : len(shared_pages_J)], host[3, len(shared_pages_J) :] = shared_pages_J, 0
        graph.inputs_CB.copy_(pinned, non_blocking=True)
        if graph.planned is not None:
            graph.planned.prepare(host[1] + 1)
        graph.graph.replay()
        return graph

    def _size(self, rows: int, cascade: bool) -> int:
        """The smallest graph that fits; one that would fit better is made when it has been missed often enough."""
        fitting = min(size for size in self._graphs[cascade] if size >= rows)
        ideal = rows if rows <= 2 else 4 if rows <= 4 else min(-(-rows // STEP) * STEP, self._max_rows)
        if ideal < fitting:
            self._wanted[ideal, cascade] += 1
            if self._wanted[ideal, cascade] >= WANTED:
                self._make(ideal, cascade)
                return ideal
        return fitting

    @torch.inference_mode()
    def _make(self, size: int, cascade: bool) -> None:
        inputs = torch.zeros((4 if cascade else 2, size), dtype=torch.int64, device=self._device)
        inputs[0] = self._slots.padding
        if cascade:
            inputs[2] = -1
        attention, planned = self._cascade if cascade else self._attention(size), None
        if isinstance(attention, HostPlanned):
            attention = planned = attention.for_graph(size)
            planned.prepare(np.ones(size, dtype=np.int64))
        with _dependent_launch() if size <= self._dependent_rows else nullcontext():
            graph, (part, tokens), self.pool = capture(lambda: self._step(inputs, attention), self.pool, self._device)
        self._graphs[cascade][size] = Graph(graph, inputs, part, tokens, planned)

    def _step(self, inputs_CB: torch.Tensor, attention: AttentionBackend) -> tuple[torch.Tensor, torch.Tensor]:
        slots_B, positions_B = inputs_CB[0], inputs_CB[1]
        size, rows = self._slots.page_size, inputs_CB.shape[1]
        last_token_N, page_table_NW, table_BW = self._slots.last_token_N, self._slots.page_table_NW, self._table_BW[:rows]
        read = decode_rows(slots_B, positions_B, last_token_N, page_table_NW, size, table_BW)
        batch = ForwardBatch(
            token_ids_T=read.token_ids_B,
            positions_T=positions_B,
            write_slots_T=read.write_slots_B,
            page_table_SP=table_BW,
            query_lens=[1] * rows,
            kv_lens=[self._max_length] * rows,
            query_lens_S=self._ones_B[:rows],
            kv_lens_S=read.kv_lens_B,
            num_decode=rows,
            logits_L=slots_B,
            page_size=size,
        )
        attention.plan(batch)
        if len(inputs_CB) == 4:
            attention.plan_cascade(inputs_CB[2].int(), inputs_CB[3].int())
        part_BV = self._model.head.logits_part(self._model(batch, attention))
        tokens_B = self._model.head.argmax(part_BV)
        self._slots.last_token_N.index_copy_(0, slots_B, tokens_B)
        return part_BV, tokens_B
