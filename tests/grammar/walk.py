"""Random texts of a grammar, through everything that real ones go through but the model: guide, masks, sampler."""

from __future__ import annotations

from concurrent.futures import Future

import numpy as np
import torch

from raysgl.engine.guides import Guides
from raysgl.engine.plan_builder import PlanBuilder
from raysgl.engine.sequence import Sequence, Status
from raysgl.grammar.compiler import GrammarCompiler
from raysgl.grammar.interface import Grammar
from raysgl.grammar.vocabulary import Vocabulary
from raysgl.sampling.constraint import Constraint
from raysgl.sampling.params import SamplingParams
from raysgl.sampling.sampler import Sampler

SPECIAL = [b"<|end|>", b"<|bos|>"]
WORDS = [
    "true",
    "false",
    "null",
    '": ',
    '", "',
    "},",
    "],",
    "[{",
    "the",
    "foo",
    "bar",
    "abc",
    "12",
    "2024-01-02",
    "  ",
    "é",
    "日本",
]
EOS = 0
BYTES = Vocabulary(
    size=len(SPECIAL) + 256 + len(WORDS) + 6,  # padded, as many models are
    tokens=[*SPECIAL, *(bytes([byte]) for byte in range(256)), *(word.encode() for word in WORDS)],
    special=[0, 1],
    eos=[EOS],
)
"""Bytes and a few words: small enough to be quick, and any text can be said."""


class Unfinished(Exception):
    """The random text found no end."""


def random_text(grammars: GrammarCompiler, grammar: Grammar, seed: int, limit: int = 600) -> bytes:
    """A text of the grammar. Tokens that end things get likelier with time."""
    done: Future[Grammar] = Future()
    done.set_result(grammar)
    sampling = SamplingParams(constraint=Constraint("regex", "any"), seed=seed)
    seq = Sequence(1, "i", "r", sampling, seed, frozenset({EOS}), [7], 1, 10**6, [], slot=0)
    guides = Guides(Compiled(grammars, done))
    guides.start(seq)
    guides.settle()
    seq.status = Status.RUNNING
    sampler = Sampler(1, BYTES.size, torch.device("cpu"))
    sampler.init_slot(0, sampling, seed)
    source = np.random.default_rng(seed)
    closing = np.zeros(BYTES.size, np.float32)
    closing[[EOS, *(len(SPECIAL) + byte for byte in b'"]}')]] = 1.0
    for step in range(limit):
        builder = PlanBuilder()
        builder.add_decode(seq)
        masks, failed = guides.masks(builder.build(step))
        if failed:
            raise AssertionError(failed[0][1].message)
        logits = source.standard_normal(BYTES.size, np.float32) + closing * (1.0 + step / 10)
        token = int(sampler.sample(torch.from_numpy(logits[None]), np.array([0]), masks).tokens_L[0])
        if token == EOS:
            break
        seq.tokens.append(token)
        finish = guides.accept(seq)
        if finish is not None:
            assert finish.reason == "stop", finish.message
            break
    else:
        raise Unfinished
    return b"".join(BYTES.tokens[token] for token in seq.tokens[1:])


class Compiled:
    """`Grammars` with one grammar that is there already."""

    def __init__(self, grammars: GrammarCompiler, grammar: Future[Grammar]):
        self.eos_token_ids, self.special_token_ids = grammars.eos_token_ids, grammars.special_token_ids
        self.num_words, self.fill = grammars.num_words, grammars.fill
        self._grammar = grammar

    def compile(self, constraint: Constraint) -> Future[Grammar]:
        return self._grammar
