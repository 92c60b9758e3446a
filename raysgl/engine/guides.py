"""Sequences that follow a grammar: which wait for theirs to be compiled, what each may say next, when it has said all. No torch.

A step with rows of such sequences is *guided*: its forward pass is launched like any other's, but it samples only when the loop gives
it the masks that the tokens before it decide. Nothing is ever taken back: a guide learns of a token when the sequence keeps it.
Legend: L rows that sample, R of them that are masked, W words.
"""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import dataclass

import numpy as np

from raysgl.engine.plan_builder import Step
from raysgl.engine.sequence import Sequence, Status
from raysgl.grammar.interface import Grammar, GrammarError, Grammars, Matcher
from raysgl.messages import Finish
from raysgl.sampling.token_masks import TokenMasks

INTERNAL_ERROR = "its grammar could not be compiled: see the log of the engine"


@dataclass(slots=True)
class Guide:
    """Of one sequence. matcher: once the grammar is there. thinking: the constraint has not begun. may_think: the token with which the
    sequence may yet begin to think, as its first.

    allow, forbid: stop tokens besides EOS that may come where EOS may, and EOS tokens that do not end this sequence.
    """

    grammar: Future[Grammar]
    thinking: bool
    allow: list[int]
    forbid: list[int]
    may_think: int | None = None
    matcher: Matcher | None = None


class Guides:
    """Written by the scheduler and the loop, in one thread. `grammars` None: constraints are refused."""

    def __init__(self, grammars: Grammars | None = None):
        self.grammars = grammars
        self.compiling: dict[Sequence, Guide] = {}
        """Sequences whose grammar is not there yet; they are in no queue."""

    def start(self, seq: Sequence) -> None:
        """A new sequence with a constraint waits for its grammar."""
        grammars = self.grammars
        assert grammars is not None and seq.sampling.constraint is not None
        seq.guide = Guide(
            grammars.compile(seq.sampling.constraint),
            thinking=bool(seq.sampling.think_end_ids) and seq.sampling.think_begin_id is None,
            may_think=seq.sampling.think_begin_id,
            allow=sorted((seq.stop_ids & grammars.special_token_ids).difference(grammars.eos_token_ids)),
            forbid=sorted(set(grammars.eos_token_ids) - seq.stop_ids),
        )
        self.compiling[seq] = seq.guide

    def settle(self) -> tuple[list[Sequence], list[tuple[Sequence, Finish]]]:
        """Sequences that need wait no longer, and those that end because of their grammar. Each is named once."""
        ready: list[Sequence] = []
        ended: list[tuple[Sequence, Finish]] = []
        for seq, guide in [item for item in self.compiling.items() if item[1].grammar.done()]:
            del self.compiling[seq]
            error = guide.grammar.exception()
            if error is not None:
                reason = str(error) if isinstance(error, GrammarError) else INTERNAL_ERROR
                status = 400 if isinstance(error, GrammarError) else 500
                ended.append((seq, Finish("error", message=reason, status=status, param="constraint")))
                continue
            guide.matcher = guide.grammar.result().matcher()
            finish = self._replay(seq, guide)
            if finish is None:
                ready.append(seq)
            else:
                ended.append((seq, finish))
        return ready, ended

    def accept(self, seq: Sequence) -> Finish | None:
        """The sequence has kept its last token, which is no stop token. A reason to end, if that is one."""
        guide = seq.guide
        if guide is None:
            return None
        return self._advance(seq, guide, len(seq.tokens))

    def masks(self, step: Step) -> tuple[TokenMasks | None, list[tuple[Sequence, Finish]]]:
        """What the rows of a guided step may sample, once all tokens before it are known; and sequences whose grammar fails here."""
        masked: list[tuple[int, Sequence, Guide, Matcher]] = []
        for index, seq in enumerate(row.seq for row in step.rows if row.samples):
            guide = seq.guide
            if guide is not None and guide.matcher is not None and not guide.thinking and seq.status is not Status.FINISHED:
                masked.append((index, seq, guide, guide.matcher))
        if not masked or self.grammars is None:
            return None, []
        bits_RW = np.empty((len(masked), self.grammars.num_words), np.int32)
        self.grammars.fill([matcher for *_, matcher in masked], bits_RW)
        failed = []
        for bits_W, (_, seq, guide, matcher) in zip(bits_RW, masked):
            if (reason := matcher.error()) is not None:
                bits_W.fill(-1)
                failed.append((seq, _failed(reason)))
                continue
            if guide.allow or guide.forbid:
                _change_ends(guide, self.grammars.eos_token_ids[0], bits_W.view(np.uint32))
            if guide.may_think is not None:
                bits_W.view(np.uint32)[guide.may_think >> 5] |= np.uint32(1 << (guide.may_think & 31))
        return TokenMasks(np.array([index for index, *_ in masked]), bits_RW), failed

    # ---------------------------------------------------------------- inner

    def _replay(self, seq: Sequence, guide: Guide) -> Finish | None:
        """Take in the output tokens that it brought from another replica."""
        for end in range(seq.num_prompt + 1, len(seq.tokens) + 1):
            finish = self._advance(seq, guide, end)
            if finish is not None:
                return finish
        return None

    def _advance(self, seq: Sequence, guide: Guide, end: int) -> Finish | None:
        """tokens[:end] are kept."""
        if guide.may_think is not None:
            guide.thinking, guide.may_think = seq.tokens[end - 1] == guide.may_think, None
        if guide.thinking:
            marks = seq.sampling.think_end_ids
            begin = end - len(marks)
            guide.thinking = begin < seq.num_prompt or tuple(seq.tokens[begin:end]) != marks
            return None
        matcher = guide.matcher
        assert matcher is not None, "a sequence sampled before its grammar was there"
        if not matcher.accept(seq.tokens[end - 1]):
            return _failed(matcher.error() or "no token that the other parameters allow fits it")
        return Finish("stop") if matcher.ended() else None


def _change_ends(guide: Guide, eos: int, bits_W: np.ndarray) -> None:
    """Where the text may end, what ends it is this request's business. bits_W: uint32."""
    if bits_W[eos >> 5] >> (eos & 31) & 1:
        for token in guide.allow:
            bits_W[token >> 5] |= np.uint32(1 << (token & 31))
        for token in guide.forbid:
            bits_W[token >> 5] &= ~np.uint32(1 << (token & 31))


def _failed(reason: str) -> Finish:
    return Finish("error", message=f"the constraint cannot be followed any further: {reason}", status=400, param="constraint")
