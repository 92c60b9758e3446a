"""Sequences with a grammar in the simulated engine: who waits for what, and that every token obeys."""

from __future__ import annotations

import itertools
from concurrent.futures import Future

import msgspec
import numpy as np
import pytest

from raysgl.engine.background import BackgroundRunner
from raysgl.engine.plan import StepPlan
from raysgl.grammar.interface import CompilerStats, GrammarError
from raysgl.messages import pack_ids
from raysgl.sampling.constraint import Constraint
from tests.engine.simulated import VOCAB, Engine, SimulatedRunner, expected

EOS = 0
RUN = Constraint("regex", "run")
"""See `Runs`."""


class Runs:
    """A grammar of runs: each token is one to three more than the one before it, and after `length` tokens the text is complete;
    `optional` tokens may follow. `futures` are compiled when the test says so."""

    eos_token_ids = (EOS,)
    special_token_ids = frozenset({EOS, 49})
    num_words = 2

    def __init__(self, length=6, optional=0, at_once=True):
        self.length, self.optional, self.at_once = length, optional, at_once
        self.futures: dict[Constraint, Future] = {}
        self.num_bytes = 0
        self.stats = CompilerStats(compiled=3)

    def compile(self, constraint):
        if constraint not in self.futures:
            self.futures[constraint] = Future()
            if self.at_once:
                self.futures[constraint].set_result(self)
        return self.futures[constraint]

    def matcher(self):
        return Run(self)

    def fill(self, matchers, bits_RW):
        for matcher, bits_W in zip(matchers, bits_RW):
            allowed = np.zeros(64, np.uint8)
            allowed[matcher.allowed()] = 1
            bits_W[:] = np.packbits(allowed, bitorder="little").view(np.int32)


class Run:
    def __init__(self, runs):
        self.runs, self.last, self.count = runs, None, 0

    def allowed(self):
        if self.count >= self.runs.length + self.runs.optional:
            return [EOS]
        following = range(1, VOCAB - 1) if self.last is None else [1 + (self.last - 1 + i) % (VOCAB - 2) for i in (1, 2, 3)]
        return [*following, *([EOS] if self.count >= self.runs.length else [])]

    def accept(self, token):
        ok = token != EOS and token in self.allowed()
        self.last, self.count = token, self.count + 1
        return ok

    def ended(self):
        return self.allowed() == [EOS]

    def error(self):
        return None


def is_run(tokens):
    return all((b - a) % (VOCAB - 2) in (1, 2, 3) for a, b in itertools.pairwise(tokens))


@pytest.mark.parametrize("overlap", [False, True])
def test_a_sequence_ends_where_its_grammar_ends(overlap):
    engine = Engine(grammars=Runs(length=6), eos=(EOS,), overlap=overlap)
    engine.submit(1, [1, 2, 3], max_new=40, constraint=RUN)
    engine.run()
    assert len(engine.tokens(1)) == 6
    assert is_run(engine.tokens(1))
    assert engine.finish(1).reason == "stop"
    assert engine.finish(1).matched is None


@pytest.mark.parametrize("overlap", [False, True])
def test_neighbours_without_a_grammar_are_not_changed(overlap):
    engine = Engine(grammars=Runs(length=30), overlap=overlap, num_pages=200)
    for uid in range(8):
        extra = {"constraint": RUN} if uid % 2 else {}
        engine.submit(uid, [uid + 1, 2, 3], max_new=20, **extra)
    engine.run()
    for uid in range(8):
        if uid % 2:
            assert is_run(engine.tokens(uid))
        else:
            assert engine.tokens(uid) == expected([uid + 1, 2, 3], 20)


def outputs(num_pages, overlap=True):
    engine = Engine(grammars=Runs(length=30), num_pages=num_pages, overlap=overlap, conservativeness=0.1)
    for uid in range(6):
        engine.submit(uid, [uid + 1, 2, 3], max_new=24, constraint=RUN)
    engine.run()
    return [engine.tokens(uid) for uid in range(6)], engine.scheduler.stats.retractions


def test_retraction_and_overlap_change_nothing():
    roomy, none = outputs(200)
    tight, some = outputs(16)
    assert none == 0 < some
    assert tight == roomy == outputs(200, overlap=False)[0]


def test_eos_comes_only_where_the_text_may_end():
    engine = Engine(grammars=Runs(length=3, optional=40), eos=(EOS,), num_pages=400)
    for uid in range(30):
        engine.submit(uid, [uid, 7], max_new=60, constraint=RUN)
    engine.run()
    lengths = []
    for uid in range(30):
        tokens = engine.tokens(uid)
        finish = engine.finish(uid)
        assert finish.reason == "stop"
        if finish.matched == EOS:
            tokens = tokens[:-1]
            lengths.append(len(tokens))
        assert is_run(tokens)
        assert 3 <= len(tokens) <= 43
    assert lengths, "no sequence ended by EOS"


def test_ignored_eos_leaves_the_end_to_the_grammar():
    engine = Engine(grammars=Runs(length=3, optional=7), eos=(EOS,), num_pages=400)
    for uid in range(20):
        engine.submit(uid, [uid, 7], max_new=60, constraint=RUN, ignore_eos=True)
    engine.run()
    assert {len(engine.tokens(uid)) for uid in range(20)} == {10}


def test_special_stop_tokens_come_where_eos_may():
    engine = Engine(grammars=Runs(length=3, optional=40), eos=(EOS,), num_pages=400)
    for uid in range(30):
        engine.submit(uid, [uid, 7], max_new=60, constraint=RUN, stop_token_ids=(49,))
    engine.run()
    assert 49 in {engine.finish(uid).matched for uid in range(30)}
    assert all(is_run([token for token in engine.tokens(uid) if token not in (EOS, 49)]) for uid in range(30))


@pytest.mark.parametrize("overlap", [False, True])
def test_others_go_on_while_a_grammar_compiles(overlap):
    grammars = Runs(at_once=False)
    engine = Engine(grammars=grammars, overlap=overlap, num_pages=200)
    engine.submit(1, [1, 2], max_new=8, constraint=RUN)
    engine.submit(2, [1, 2], max_new=40)
    for _ in range(100):
        engine.loop.run_once()
    assert engine.tokens(2) == expected([1, 2], 40)
    assert engine.tokens(1) == []
    assert not engine.loop.idle
    assert engine.scheduler.load().waiting == 1
    assert engine.scheduler.load().grammars_compiled == 3
    grammars.futures[RUN].set_result(grammars)
    engine.run()
    assert is_run(engine.tokens(1))
    assert len(engine.tokens(1)) == 6


def test_a_refused_grammar_is_the_clients_fault():
    grammars = Runs(at_once=False)
    engine = Engine(grammars=grammars)
    engine.submit(1, [1, 2], constraint=RUN, n=2)
    engine.loop.run_once()
    grammars.futures[RUN].set_exception(GrammarError("it is too large"))
    engine.run()
    for uid in (1, 2):
        finish = engine.finish(uid)
        assert (finish.reason, finish.status, finish.message, finish.param) == ("error", 400, "it is too large", "constraint")


def test_what_breaks_the_compiler_is_not():
    grammars = Runs(at_once=False)
    engine = Engine(grammars=grammars)
    engine.submit(1, [1, 2], constraint=RUN)
    engine.loop.run_once()
    grammars.futures[RUN].set_exception(RuntimeError("a secret path"))
    engine.run()
    assert engine.finish(1).status == 500
    assert "secret" not in engine.finish(1).message


def test_aborted_while_its_grammar_compiles():
    engine = Engine(grammars=Runs(at_once=False))
    engine.submit(1, [1, 2], constraint=RUN)
    engine.loop.run_once()
    engine.scheduler.abort("i", [1])
    assert engine.loop.idle
    assert engine.scheduler.flush()[0]


def test_it_goes_on_where_another_replica_stopped():
    engine = Engine(grammars=Runs(length=12))
    engine.submit(1, [1, 2, 3], max_new=40, constraint=RUN)
    engine.run()
    whole = engine.tokens(1)
    for known in range(1, 11):
        other = Engine(grammars=Runs(length=12))
        other.submit(1, [1, 2, 3], max_new=40, sent=whole[:known], constraint=RUN)
        other.run()
        assert whole[:known] + other.tokens(1) == whole
    complete = Engine(grammars=Runs(length=12))
    complete.submit(1, [1, 2, 3], max_new=40, sent=whole, constraint=RUN)
    complete.run()
    assert complete.finish(1).reason == "stop"


@pytest.mark.parametrize("overlap", [False, True])
def test_the_constraint_begins_after_thinking(overlap):
    free = expected([1, 2, 3], 9)
    engine = Engine(grammars=Runs(length=6), overlap=overlap)
    engine.submit(1, [1, 2, 3], max_new=40, constraint=RUN, think_end_ids=tuple(free[7:9]))
    engine.run()
    tokens = engine.tokens(1)
    assert tokens[:9] == free
    assert is_run(tokens[9:])
    assert len(tokens) == 15


@pytest.mark.parametrize("overlap", [False, True])
def test_a_model_may_think_first_or_not(overlap):
    """49 is no token of the grammar: it may come first because the model may think."""
    prompt = next([first, 1] for first in range(VOCAB) if expected([first, 1], 1) == [49])
    free = expected(prompt, 9)
    wishes = {"constraint": RUN, "think_end_ids": tuple(free[7:9]), "max_new": 40}
    engine = Engine(grammars=Runs(length=6), overlap=overlap)
    engine.submit(1, prompt, think_begin_id=49, **wishes)
    engine.submit(2, prompt, think_begin_id=48, **wishes)
    engine.run()
    assert engine.tokens(1)[:9] == free
    assert is_run(engine.tokens(1)[9:])
    assert len(engine.tokens(1)) == 15
    assert is_run(engine.tokens(2))
    assert len(engine.tokens(2)) == 6
    other = Engine(grammars=Runs(length=6), overlap=overlap)
    other.submit(1, prompt, sent=engine.tokens(1)[:4], think_begin_id=49, **wishes)
    other.run()
    assert engine.tokens(1)[:4] + other.tokens(1) == engine.tokens(1)


def test_where_nothing_is_left_to_sample_it_says_so():
    class Wrong(Runs):
        def fill(self, matchers, bits_RW):
            bits_RW[:] = -1

    engine = Engine(grammars=Wrong(length=30))
    engine.submit(1, [1, 2, 3], max_new=40, constraint=RUN)
    engine.run()
    assert engine.finish(1).reason == "error"
    assert engine.finish(1).status == 400


def test_without_grammars_a_constraint_is_refused():
    engine = Engine()
    engine.submit(1, [1, 2, 3], constraint=RUN)
    engine.run()
    assert engine.finish(1).status == 400
    assert engine.finish(1).param == "constraint"


@pytest.mark.parametrize("samples", [True, False])
def test_only_the_rank_that_samples_waits_for_masks(samples):
    runner = SimulatedRunner(8, 4, 2)
    if not samples:  # as on other ranks, where a guided step is complete when it is launched
        runner.sample = None
        simulated = runner.launch
        runner.launch = lambda plan: simulated(msgspec.structs.replace(plan, guided=False))
    behind = BackgroundRunner(lambda: runner, samples=samples)
    one = pack_ids([1])
    plan = StepPlan(
        1, pack_ids([0]), pack_ids([0]), one, one, 0, pack_ids([5]), pack_ids([0]), pack_ids([0]), one, [], guided=True
    )
    step = behind.launch(plan)
    if samples:
        assert not step.wait(0.05)
        behind.sample(None)
    assert step.wait(10)
    assert len(step.result().token_ids) == 1
    behind.close()
