"""Small steps with prompts in them as CUDA graphs: a short prompt's first token waits for the GPU, not for a thousand launches.

Measured on an H200 with an 8B model: a step of 128 prompt tokens takes 10 ms when each kernel is launched by itself, all of it
the host's, and half of that on the device. From about 512 tokens on the device is the slower one, and graphs gain nothing.

A graph is made for a number of tokens and a number of rows. Tokens that are missing belong to the last row, which has the padding slot;
rows that are missing are empty. Legend: `raysgl.kernels.batch`; R rows and T tokens of a graph.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
import torch

from raysgl.engine.decode_graphs import capture
from raysgl.engine.plan import StepPlan, ints
from raysgl.engine.slots import Slots
from raysgl.kernels.attention import AttentionBackend
from raysgl.kernels.batch import ForwardBatch

TOKENS = (16, 32, 64, 128, 192, 256, 384, 512)
ROWS = (8, 64, 512)
FIRST = ((16, 8), (64, 8), (128, 8), (256, 8), (512, 8))
"""Made at start: a short prompt into an idle engine."""
WANTED = 4
"""Other sizes are made when they have been missed so often."""
FROM_DEVICE = -1
"""Instead of a token id: the last one sampled for the slot."""


@dataclass
class Graph:
    """inputs: the step's integers, as laid out by `MixedGraphs._parts`. It leaves part_RV (this rank's logits) and tokens_R (the
    argmax of all ranks')."""

    graph: torch.cuda.CUDAGraph
    inputs: torch.Tensor
    part_RV: torch.Tensor
    tokens_R: torch.Tensor


class MixedGraphs:
    """See the top of the file. One stream; graphs share the memory pool of the decode graphs."""

    def __init__(self, model: torch.nn.Module, attention: AttentionBackend, slots: Slots, max_rows: int, max_length: int):
        self._model, self._attention, self._slots = model, attention, slots
        self._max_length = max_length
        self._device = slots.last_token_N.device
        self._tokens = [size for size in TOKENS if size <= max_length]
        self._rows = [size for size in ROWS if size <= max_rows] + [max_rows + 1]
        self._graphs: dict[tuple[int, int], Graph] = {}
        self._wanted: Counter[tuple[int, int]] = Counter()
        self._pool = None

    def make_first(self, pool) -> None:
        """The sizes that every start needs."""
        self._pool = pool
        for tokens, rows in FIRST:
            if tokens in self._tokens and rows in self._rows:
                self._make(tokens, rows)

    def find(self, plan: StepPlan) -> tuple[int, int] | None:
        """The size of the graph that runs this plan, or None: launch it kernel by kernel."""
        if plan.prompt_logprobs_S:
            return None
        count = plan.num_decode + len(plan.token_ids_T) // 4
        tokens = next((size for size in self._tokens if size >= count), None)
        rows = next((size for size in self._rows if size > len(plan.slots_S) // 4), None)
        if tokens is None or rows is None:
            return None
        size = (tokens, rows)
        if size not in self._graphs:
            self._wanted[size] += 1
            if self._wanted[size] < WANTED:
                return None
            self._make(*size)
        return size

    def run(self, size: tuple[int, int], plan: StepPlan) -> Graph:
        """Replay. Row i of the graph is row i of the plan."""
        tokens, rows = size
        graph = self._graphs[size]
        slots_S, starts_S, counts_S = ints(plan.slots_S), ints(plan.starts_S), ints(plan.counts_S)
        used, taken = len(slots_S), int(counts_S.sum())
        pinned = torch.empty(graph.inputs.shape, dtype=torch.int64, pin_memory=True)
        ids_T, slots_T, positions_T, slots_R, counts_R, lens_R, last_R, sampling_R = self._parts(pinned.numpy(), tokens, rows)
        spare = tokens - taken
        ids_T[: plan.num_decode], ids_T[plan.num_decode : taken], ids_T[taken:] = FROM_DEVICE, ints(plan.token_ids_T), 0
        slots_T[:taken], slots_T[taken:] = np.repeat(slots_S, counts_S), self._slots.padding
        ends_S = np.cumsum(counts_S)
        positions_T[:taken] = np.arange(taken) - np.repeat(ends_S - counts_S - starts_S, counts_S)
        positions_T[taken:] = np.arange(spare)
        slots_R[:used], slots_R[used:] = slots_S, self._slots.padding
        counts_R[:used], counts_R[used:], counts_R[-1] = counts_S, 0, spare
        lens_R[:used], lens_R[used:], lens_R[-1] = starts_S + counts_S, 0, spare
        last_R[:used], last_R[used:] = ends_S - 1, 0
        sampling_R[:used] = np.where(ints(plan.samples_S) != 0, slots_S, self._slots.padding)
        sampling_R[used:] = self._slots.padding
        graph.inputs.copy_(pinned, non_blocking=True)
        graph.graph.replay()
        return graph

    @staticmethod
    def _parts(flat, tokens: int, rows: int):
        """Three arrays of T (ids, slots, positions) and five of R (slots, counts, lengths, last token, slots that sample)."""
        return [flat[i * tokens : (i + 1) * tokens] for i in range(3)] + [
            flat[3 * tokens + i * rows : 3 * tokens + (i + 1) * rows] for i in range(5)
        ]

    @torch.inference_mode()
    def _make(self, tokens: int, rows: int) -> None:
        inputs = torch.zeros(3 * tokens + 5 * rows, dtype=torch.int64, device=self._device)
        _, slots_T, positions_T, slots_R, counts_R, lens_R, _, sampling_R = self._parts(inputs, tokens, rows)
        for slots in (slots_T, slots_R, sampling_R):
            slots.fill_(self._slots.padding)
        positions_T.copy_(torch.arange(tokens))
        counts_R[-1] = lens_R[-1] = tokens
        graph, (part, sampled), self._pool = capture(lambda: self._step(inputs, tokens, rows), self._pool, self._device)
        self._graphs[tokens, rows] = Graph(graph, inputs, part, sampled)

    def _step(self, inputs: torch.Tensor, tokens: int, rows: int) -> tuple[torch.Tensor, torch.Tensor]:
        ids_T, slots_T, positions_T, slots_R, counts_R, lens_R, last_R, sampling_R = self._parts(inputs, tokens, rows)
        size = self._slots.page_size
        cells_T = slots_T * self._slots.width + positions_T // size
        page_T = self._slots.page_table_NW.view(-1).index_select(0, cells_T)
        decoded_T = self._slots.last_token_N.index_select(0, slots_T)
        batch = ForwardBatch(
            token_ids_T=torch.where(ids_T == FROM_DEVICE, decoded_T, ids_T),
            positions_T=positions_T,
            write_slots_T=page_T.long() * size + positions_T % size,
            page_table_SP=self._slots.page_table_NW.index_select(0, slots_R),
            query_lens=[tokens] + [0] * (rows - 1),  # upper bounds; the true ones are on the device
            kv_lens=[self._max_length] * rows,
            query_lens_S=counts_R.int(),
            kv_lens_S=lens_R.int(),
            num_decode=0,
            logits_L=last_R,
            page_size=size,
        )
        self._attention.plan(batch)
        hidden_TD = self._model(batch, self._attention)
        part_RV = self._model.head.logits_part(hidden_TD.index_select(0, last_R))
        tokens_R = self._model.head.argmax(part_RV)
        self._slots.last_token_N.index_copy_(0, sampling_R, tokens_R)
        return part_RV, tokens_R
