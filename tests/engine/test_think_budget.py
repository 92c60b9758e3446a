"""What a model may think at most, in the simulated engine: its own words up to there, then the end, then its own words again."""

from __future__ import annotations

import pytest

from raysgl.engine.think_budget import ThinkBudget
from raysgl.sampling.params import SamplingParams
from tests.engine.replica import Replica
from tests.engine.simulated import VOCAB, Engine, expected, next_token
from tests.engine.test_guides import RUN, Runs, is_run

PROMPT = [1, 2, 3]
END = (45, 46, 45, 47)


def answer(prompt, most, count=30, end=END, first=None):
    """What the simulated model says with so many tokens of reasoning. first: the token with which it must begin to think."""
    tokens, thinking, spent = list(prompt), first is None, 0
    for i in range(count):
        said = tokens[len(prompt) :]
        free = next_token(tokens)
        if thinking and spent >= most:
            begun = next(n for n in range(len(end) - 1, -1, -1) if n <= spent and tuple(said[len(said) - n :]) == end[:n])
            free = end[begun]
        tokens.append(free)
        if i == 0 and first is not None:
            thinking = free == first
        elif thinking:
            spent += 1
            thinking = tuple(tokens[len(prompt) :][-len(end) :]) != end
    return tokens[len(prompt) :]


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("most", [0, 1, 2, 7, 25])
def test_the_end_comes_when_the_budget_is_spent(most, overlap):
    engine = Engine(overlap=overlap, vocab_size=VOCAB)
    wishes = {"max_new": 30, "think_end_ids": END}
    for uid in range(1, 4):  # others in the same steps are left alone
        engine.submit(uid, [uid, 2, 3], **wishes, max_thinking_tokens=most if uid == 1 else None)
    engine.run()
    found = engine.tokens(1)
    assert found == answer(PROMPT, most)
    assert found[:most] == expected(PROMPT, 30)[:most] and tuple(found[most : most + 4]) == END
    assert [engine.tokens(uid) for uid in (2, 3)] == [expected([uid, 2, 3], 30) for uid in (2, 3)]


@pytest.mark.parametrize("overlap", [False, True])
def test_who_ends_before_is_left_alone(overlap):
    free = expected(PROMPT, 30)
    engine = Engine(overlap=overlap, vocab_size=VOCAB)
    guided = []
    launch = engine.runner.launch
    engine.runner.launch = lambda plan: guided.append(plan.guided) or launch(plan)
    engine.submit(1, PROMPT, max_new=30, think_end_ids=tuple(free[4:6]), max_thinking_tokens=10)
    engine.run()
    assert engine.tokens(1) == free
    assert not any(guided), "a budget that is not spent costs nothing"


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("begins", [True, False])
def test_a_model_that_may_think_or_not(overlap, begins):
    first = expected(PROMPT, 1)[0] if begins else 49
    engine = Engine(overlap=overlap, vocab_size=VOCAB)
    engine.submit(1, PROMPT, max_new=30, think_end_ids=END, think_begin_id=first, max_thinking_tokens=3)
    engine.run()
    assert engine.tokens(1) == answer(PROMPT, 3, first=first)
    assert (tuple(engine.tokens(1)[4:8]) == END) == begins


def test_an_end_that_has_begun_goes_on():
    """The mark has its own beginning in it: what counts is the longest part that is there."""
    budget = ThinkBudget.of(SamplingParams(max_thinking_tokens=3, think_end_ids=END), [9, 45, 46])
    for token in (45, 47):
        assert budget.forced == token
        budget.accept(token)
    assert budget.forced is None and not budget.thinking and not budget.due(100)
    again = ThinkBudget.of(SamplingParams(max_thinking_tokens=3, think_end_ids=END), [45, 46, 45, 46])
    assert again.forced == 45, "behind 45 46, not behind 45 46 45"


def test_a_real_model_goes_on_behind_it(tiny_checkpoint):
    """257 tokens: the last word of a mask has a single bit."""
    replica = Replica(tiny_checkpoint("llama", vocab_size=257))
    end = (256, 7)
    found = replica.greedy(PROMPT, 20, think_end_ids=end, max_thinking_tokens=6)
    assert found[:6] == replica.greedy(PROMPT, 6) and tuple(found[6:8]) == end
    assert found[8:] == replica.greedy([*PROMPT, *found[:8]], 12)


def test_with_a_constraint_behind_and_on_another_replica():
    wishes = {"max_new": 40, "constraint": RUN, "think_end_ids": END, "max_thinking_tokens": 5}
    engine = Engine(grammars=Runs(length=6))
    engine.submit(1, PROMPT, **wishes)
    engine.submit(2, [4, 5, 6], max_new=40, constraint=RUN)
    engine.run()
    whole = engine.tokens(1)
    assert whole[:5] == expected(PROMPT, 5) and tuple(whole[5:9]) == END and is_run(whole[9:]) and len(whole) == 15
    assert is_run(engine.tokens(2))
    for known in range(1, 14):
        other = Engine(grammars=Runs(length=6))
        other.submit(1, PROMPT, sent=whole[:known], **wishes)
        other.run()
        assert whole[:known] + other.tokens(1) == whole
