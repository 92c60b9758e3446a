"""Device state of every slot, and how a plan and it become the tensors of one step.

All integers of a step travel to the device in one copy. Legend: `raysgl.kernels.batch`; N slots, W pages of the longest table,
L rows that sample.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from raysgl.engine.plan import StepPlan, ints
from raysgl.kernels.batch import ForwardBatch
from raysgl.sampling.transfer import upload


@dataclass(frozen=True)
class StepRows:
    """Which rows sample: `slots_L` are theirs, on the host and on the device."""

    slots_L: np.ndarray
    device_slots_L: torch.Tensor


class Slots:
    """page_table_NW: int32, the pages of the slot's sequence, then zeros. last_token_N: int64, what was sampled last.

    Steps use them in launch order, so a step may be prepared before the one before it has run.
    """

    def __init__(self, num_slots: int, context_length: int, page_size: int, device: torch.device):
        self.page_size = page_size
        self.width = -(-context_length // page_size)
        self.padding = num_slots
        """A slot that no sequence has: rows of it write to the padding page."""
        self.page_table_NW = torch.zeros(num_slots + 1, self.width, dtype=torch.int32, device=device)
        self.last_token_N = torch.zeros(num_slots + 1, dtype=torch.int64, device=device)
        self._device = device

    def prepare(self, plan: StepPlan) -> tuple[ForwardBatch, StepRows]:
        """Take in the plan's page table entries, and lay out its rows."""
        size, width = self.page_size, self.width
        slots_S, starts_S, counts_S = ints(plan.slots_S), ints(plan.starts_S), ints(plan.counts_S)
        samples_S = ints(plan.samples_S)
        ends_S = starts_S + counts_S
        last_S = np.cumsum(counts_S) - 1
        if last_S[-1] + 1 == len(slots_S):  # one token in every row
            slots_T, positions_T = slots_S, starts_S
        else:
            slots_T = np.repeat(slots_S, counts_S)
            positions_T = np.arange(len(slots_T), dtype=np.int32) + np.repeat(ends_S - 1 - last_S, counts_S)
        pages_T, offsets_T = np.divmod(positions_T, size)
        sampling = samples_S != 0
        slots_L = slots_S[sampling]
        packed = (
            np.fromiter((init.slot for init in plan.init), np.int32, len(plan.init)),
            ints(plan.page_slots) * width + ints(plan.page_indices),
            ints(plan.page_ids),
            slots_S,
            counts_S,
            ends_S,
            positions_T,
            slots_T * width + pages_T,
            offsets_T,
            ints(plan.token_ids_T),
            last_S[sampling],
            slots_L,
        )
        on_device = upload(np.concatenate(packed, dtype=np.int64), self._device).split([len(part) for part in packed])
        fresh, entries, pages, rows_S, query_lens_S, kv_lens_S, positions, cells_T, offsets, token_ids, logits_L, slots = (
            on_device
        )
        table = self.page_table_NW
        if len(fresh):
            table.index_fill_(0, fresh, 0)
        if len(entries):
            table.view(-1).index_copy_(0, entries, pages.int())
        if plan.num_decode:
            decoded = self.last_token_N.index_select(0, rows_S[: plan.num_decode])
            token_ids = torch.cat((decoded, token_ids)) if len(token_ids) else decoded
        longest = -(-int(ends_S.max()) // size)
        batch = ForwardBatch(
            token_ids_T=token_ids,
            positions_T=positions,
            write_slots_T=torch.add(offsets, table.view(-1).index_select(0, cells_T), alpha=size),
            page_table_SP=table[:, :longest].index_select(0, rows_S),
            query_lens=counts_S.tolist(),
            kv_lens=ends_S.tolist(),
            query_lens_S=query_lens_S.int(),
            kv_lens_S=kv_lens_S.int(),
            num_decode=plan.num_decode,
            logits_L=logits_L,
            page_size=size,
        )
        return batch, StepRows(slots_L, slots)

    def take_pages(self, plan: StepPlan) -> None:
        """Only the plan's page table entries, for steps whose rows are laid out on the device."""
        if plan.init:
            fresh = np.fromiter((init.slot for init in plan.init), np.int64, len(plan.init))
            self.page_table_NW.index_fill_(0, upload(fresh, self._device), 0)
        if plan.page_slots:
            cells = ints(plan.page_slots) * self.width + ints(plan.page_indices)
            entries, pages = upload(np.stack((cells, ints(plan.page_ids)), dtype=np.int64), self._device)
            self.page_table_NW.view(-1).index_copy_(0, entries, pages.int())

    def sampled(self, rows: StepRows, tokens_L: torch.Tensor) -> None:
        """Keep what the rows sampled for the next step."""
        self.last_token_N.index_copy_(0, rows.device_slots_L, tokens_L)
