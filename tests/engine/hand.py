"""Step plans made by hand: a test says which sequence computes how many tokens, this keeps slots and pages."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from raysgl.engine.plan import SlotInit, StepPlan
from raysgl.messages import pack_ids
from raysgl.sampling.params import SamplingParams

GREEDY = SamplingParams(temperature=0.0)


@dataclass
class Seq:
    """tokens: what is known. computed: how many are in the cache once the plans made so far have run."""

    tokens: list[int]
    slot: int
    sampling: SamplingParams = GREEDY
    seed: int = 0
    num_prompt: int = 0
    computed: int = 0
    started: bool = False
    pages: list[int] = field(default_factory=list)
    stop_ids: tuple[int, ...] = ()

    def __post_init__(self):
        self.num_prompt = self.num_prompt or len(self.tokens)


class Hand:
    """Pages are handed out in a shuffled order, so that neighbours in a table are none in memory."""

    def __init__(self, num_pages: int, page_size: int):
        self.page_size = page_size
        self.free = list(range(1, num_pages + 1))
        random.Random(0).shuffle(self.free)
        self.step = 0

    def release(self, seq: Seq) -> None:
        self.free += seq.pages
        seq.pages, seq.computed, seq.started = [], 0, False

    def plan(self, decodes: list[Seq] = (), chunks: list[tuple[Seq, int]] = ()) -> StepPlan:
        """Decode rows compute the token that is on the device; chunks the next `count` known ones, and sample at the end."""
        self.step += 1
        rows = [(seq, 1, True) for seq in decodes]
        rows += [(seq, count, seq.computed + count == len(seq.tokens)) for seq, count in chunks]
        init, updates, wanted, targets, ids = [], [], [], [], []
        for index, (seq, count, _) in enumerate(rows):
            penalised = seq.sampling.penalised
            if not seq.started:
                seq.started = True
                init.append(
                    SlotInit(
                        slot=seq.slot,
                        sampling=seq.sampling,
                        seed=seq.seed,
                        num_prompt=seq.num_prompt,
                        num_output=len(seq.tokens) - seq.num_prompt,
                        prompt_ids=pack_ids(seq.tokens[: seq.num_prompt]) if penalised else b"",
                        output_ids=pack_ids(seq.tokens[seq.num_prompt :]) if penalised else b"",
                        stop_ids=seq.stop_ids,
                    )
                )
            while len(seq.pages) * self.page_size < seq.computed + count:
                updates.append((seq.slot, len(seq.pages), self.free[-1]))
                seq.pages.append(self.free.pop())
            asks = index >= len(decodes) and seq.sampling.prompt_logprobs is not None
            wanted.append(seq.sampling.prompt_logprobs if asks else -1)
            if index >= len(decodes):
                ids += seq.tokens[seq.computed : seq.computed + count]
            if asks:
                following = seq.tokens[seq.computed + 1 : seq.computed + count + 1]
                targets += following + [0] * (count - len(following))
        plan = StepPlan(
            step=self.step,
            slots_S=pack_ids([seq.slot for seq, _, _ in rows]),
            starts_S=pack_ids([seq.computed for seq, _, _ in rows]),
            counts_S=pack_ids([count for _, count, _ in rows]),
            samples_S=pack_ids([int(samples) for _, _, samples in rows]),
            num_decode=len(decodes),
            token_ids_T=pack_ids(ids),
            page_slots=pack_ids([slot for slot, _, _ in updates]),
            page_indices=pack_ids([index for _, index, _ in updates]),
            page_ids=pack_ids([page for _, _, page in updates]),
            init=init,
            prompt_logprobs_S=pack_ids(wanted) if targets else b"",
            prompt_targets_T=pack_ids(targets),
        )
        for seq, count, _ in rows:
            seq.computed += count
        return plan
