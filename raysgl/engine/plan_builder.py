"""Collects the rows of one step and packs them into a `StepPlan`."""

from __future__ import annotations

from array import array
from dataclasses import dataclass

from raysgl.engine.plan import SlotInit, StepPlan
from raysgl.engine.sequence import Sequence
from raysgl.engine.shared_prefixes import Groups
from raysgl.messages import pack_ids


@dataclass(slots=True)
class Row:
    """One sequence's part of a step: it computes `count` tokens from position `start` on."""

    seq: Sequence
    start: int
    count: int
    samples: bool
    prompt_logprobs: bool = False


@dataclass(slots=True)
class Step:
    """A plan and who its rows are (which the plan itself doesn't say)."""

    plan: StepPlan
    rows: list[Row]
    num_prefill_tokens: int
    num_decode_tokens: int


class PlanBuilder:
    """Decode rows must be added before the others."""

    def __init__(self) -> None:
        self.rows: list[Row] = []
        self.num_decode = 0
        self.num_tokens = 0
        self.guided = False
        self._slots, self._starts, self._counts = array("i"), array("i"), array("i")
        self._samples, self._logprobs = array("i"), array("i")
        self._token_ids, self._targets = array("i"), array("i")
        self._page_slots, self._page_indices, self._page_ids = array("i"), array("i"), array("i")
        self._init: list[SlotInit] = []

    @property
    def num_prefill(self) -> int:
        return self.num_tokens - self.num_decode

    def init_slot(self, seq: Sequence) -> None:
        """The row's sequence has taken a slot with this step."""
        penalised, history = seq.sampling.penalised, seq.sampling.penalised or bool(seq.sampling.bad_words)
        self._init.append(
            SlotInit(
                slot=seq.slot,
                sampling=seq.sampling,
                seed=seq.seed,
                num_prompt=seq.num_prompt,
                num_output=seq.num_output,
                prompt_ids=pack_ids(seq.tokens[: seq.num_prompt]) if penalised else b"",
                output_ids=pack_ids(seq.tokens[seq.num_prompt :]) if history else b"",
                stop_ids=tuple(sorted(seq.stop_ids)) if seq.sampling.min_new_tokens else (),
            )
        )

    def add_decode(self, seq: Sequence) -> None:
        """One token whose id is on the device."""
        self._add(Row(seq, seq.num_computed, 1, samples=True))
        self._logprobs.append(-1)
        self.num_decode += 1

    def add_prefill(self, seq: Sequence, count: int, samples: bool, wants_logprobs: bool) -> None:
        """The next `count` known tokens."""
        start = seq.num_computed
        self._add(Row(seq, start, count, samples, wants_logprobs))
        self._token_ids.extend(seq.tokens[start : start + count])
        if wants_logprobs:
            targets = seq.tokens[start + 1 : start + count + 1]
            self._targets.extend(targets + [0] * (count - len(targets)))
            self._logprobs.append(seq.sampling.prompt_logprobs or 0)
        else:
            self._logprobs.append(-1)

    def _add(self, row: Row) -> None:
        seq = row.seq
        self.rows.append(row)
        self.num_tokens += row.count
        if row.samples and (seq.guide is not None or (seq.budget is not None and seq.budget.due(seq.num_pending))):
            self.guided = True
        self._slots.append(seq.slot)
        self._starts.append(row.start)
        self._counts.append(row.count)
        self._samples.append(row.samples)
        if seq.table_updates:
            self._page_slots.extend([seq.slot] * len(seq.table_updates))
            for index, page in seq.table_updates:
                self._page_indices.append(index)
                self._page_ids.append(page)
            seq.table_updates.clear()

    def build(self, step: int, groups: Groups | None = None) -> Step:
        """The packed plan. `groups` are of its decode rows."""
        plan = StepPlan(
            step=step,
            slots_S=self._slots.tobytes(),
            starts_S=self._starts.tobytes(),
            counts_S=self._counts.tobytes(),
            samples_S=self._samples.tobytes(),
            num_decode=self.num_decode,
            token_ids_T=self._token_ids.tobytes(),
            page_slots=self._page_slots.tobytes(),
            page_indices=self._page_indices.tobytes(),
            page_ids=self._page_ids.tobytes(),
            init=self._init,
            prompt_logprobs_S=self._logprobs.tobytes() if self._targets else b"",
            prompt_targets_T=self._targets.tobytes(),
            groups_S=pack_ids(groups.rows) if groups else b"",
            shared_pages_J=pack_ids(groups.pages) if groups else b"",
            guided=self.guided,
        )
        return Step(plan, self.rows, self.num_prefill, self.num_decode)
