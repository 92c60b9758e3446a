"""What a step runs: the typed message that the scheduler hands to every shard. No torch.

Rows are the sequences of one step, decode rows first. Arrays travel as little-endian int32 bytes, which numpy and
torch read without a copy. S rows, T tokens computed this step.
"""

from __future__ import annotations

from typing import Protocol

import msgspec
import numpy as np

from raysgl.messages import TokenLogprob
from raysgl.sampling.params import SamplingParams
from raysgl.sampling.token_masks import TokenMasks


class SlotInit(msgspec.Struct, array_like=True):
    """A sequence takes a slot: its sampling settings and the tokens known so far (for penalties and min tokens).

    `prompt_ids` and `output_ids` are packed int32; they are empty unless the settings need them (penalties, bad words).
    `num_output` is how many output tokens it has had (it may have been retracted, or moved here).
    `stop_ids` are the token ids that `min_new_tokens` forbids (EOS unless ignored, and stop ids).
    """

    slot: int
    sampling: SamplingParams
    seed: int
    num_prompt: int
    num_output: int = 0
    prompt_ids: bytes = b""
    output_ids: bytes = b""
    stop_ids: tuple[int, ...] = ()


class StepPlan(msgspec.Struct, array_like=True):
    """One forward pass.

    slots_S, starts_S, counts_S: the row's slot, the position of the first token it computes, and how many.
    num_decode: the first so many rows compute one token each, whose id is the last token sampled for that slot: it is read
        from the device, since the scheduler may not know it yet.
    token_ids_T: ids of the tokens of the other rows, row by row.
    samples_S: 1 for rows that sample a token after this step (decode rows, and rows whose prompt ends here).
    page_slots, page_indices, page_ids: page table entries to write first (slot, index in its table, page).
    init: sequences that take a slot with this step, before anything else of it.
    prompt_logprobs_S: -1, or how many alternatives to report for each prompt token of the row's chunk. Entry i of a
        chunk's answer is about the token at position starts + i + 1.
    """

    step: int
    slots_S: bytes
    starts_S: bytes
    counts_S: bytes
    samples_S: bytes
    num_decode: int
    token_ids_T: bytes
    page_slots: bytes
    page_indices: bytes
    page_ids: bytes
    init: list[SlotInit]
    prompt_logprobs_S: bytes = b""
    prompt_targets_T: bytes = b""
    """For rows that report prompt log probabilities: the id that follows each token of the chunk (packed as token_ids_T)."""
    groups_S: bytes = b""
    """For steps of decode rows alone that share prefixes: each row's group (-1: none), else empty."""
    shared_pages_J: bytes = b""
    """How many pages the rows of each group begin with."""
    guided: bool = False
    """Rank 0 samples this step only when it is given masks (`Runner.sample`)."""


def ints(data: bytes) -> np.ndarray:
    """A plan's packed array as int32 numpy, read only, not copied."""
    return np.frombuffer(data, dtype=np.int32)


class StepResult(msgspec.Struct):
    """What a step sampled, in the order of the plan's sampling rows.

    `logprobs[i]` is None for rows that did not ask. `prompt_logprobs` maps a row of the plan to its chunk's answers.
    """

    token_ids: list[int]
    logprobs: list[TokenLogprob | None] | None = None
    prompt_logprobs: dict[int, list[TokenLogprob]] | None = None


class PendingStep(Protocol):
    """A launched step."""

    def wait(self, timeout: float | None) -> bool:
        """Block until the step's tokens are on the host, at most so many seconds (None: for ever). Whether they are."""

    def ending(self) -> bool:
        """Whether it is time to launch the next step, so that the device does not wait for it. True where nobody can tell."""

    def result(self) -> StepResult:
        """What the step sampled. Blocks until it is there; raises what the step raised."""


class Runner(Protocol):
    """Runs plans, in order. One per shard; only rank 0's result is read."""

    num_pages: int
    """Pages in the KV pool, not counting page 0, which is never handed out: padding writes there."""

    def launch(self, plan: StepPlan) -> PendingStep:
        """Start a step. On a GPU it returns before the step has run; steps run in launch order."""

    def sample(self, masks: TokenMasks | None) -> None:
        """Let the step launched last, which is guided, sample. Before that it is not waited for, and no other is launched."""
