"""The workloads' prompts: their sizes, what they share, and that no workload warms the cache for another."""

from __future__ import annotations

import random

import pytest

from raysgl.bench.prompts import Lengths, Shape, ids, make, words
from raysgl.bench.workloads import ALL, WORKLOADS, prompts


def test_sizes_and_shares():
    for workload in WORKLOADS.values():
        shape, made = workload.shape, prompts(workload, 1)
        assert len(made) == shape.count
        assert {len(talk) for talk in made} == {shape.turns}
        assert {len(talk[0].part) for talk in made} == {shape.shared + shape.own.least}
        assert {turn.output for talk in made for turn in talk} == {shape.output.least}
        if shape.shared:
            assert len({tuple(talk[0].part[: shape.shared]) for talk in made}) == shape.groups


def test_samples_are_of_one_prompt_and_asked_for_by_name():
    made = prompts(WORKLOADS["samples"], 1)
    assert len(made) == 512 and len({tuple(talk[0].part[:-1]) for talk in made}) == 1
    assert {len(talk[0].part) for talk in made} == {4096}
    assert ALL == ("S1", "S2", "S3", "S4", "S5", "S6", "S7")


def test_workloads_share_nothing_with_each_other_and_repeat_themselves():
    starts = [tuple(talk[0].part[:64]) for name in ("S2", "S3", "S4", "S6") for talk in prompts(WORKLOADS[name], 1)]
    assert len(set(starts)) == len(starts)
    assert prompts(WORKLOADS["S1"], 1) == prompts(WORKLOADS["S1"], 1) != prompts(WORKLOADS["S1"], 2)


@pytest.mark.parametrize("draw", [ids, words])
def test_ranges(draw):
    shape = Shape(200, Lengths(2, 5), Lengths(7, 9), shared=3, groups=4, turns=2)
    made = make(shape, draw, "1")
    parts = [[turn.part.split() if draw is words else turn.part for turn in talk] for talk in made]
    assert {len(talk[0]) for talk in parts} == {5, 6, 7, 8} and {len(talk[1]) for talk in parts} == {2, 3, 4, 5}
    assert {turn.output for talk in made for turn in talk} == {7, 8, 9}
    assert len({tuple(talk[0][:3]) for talk in parts}) == 4


def test_lengths():
    assert Lengths.parse("5") == Lengths.exactly(5) and str(Lengths.parse("2:7")) == "2 to 7"
    for text in ("", "x", "0", "3:2", "1:2:3"):
        with pytest.raises(ValueError, match="length|number"):
            Lengths.parse(text)
    source = random.Random(1)
    assert {Lengths(1, 3).draw(source) for _ in range(50)} == {1, 2, 3}
