"""The workloads' prompts: their sizes, what they share, and that no workload warms the cache for another."""

from __future__ import annotations

from raysgl.bench.workloads import WORKLOADS, prompts


def test_sizes_and_shares():
    for workload in WORKLOADS.values():
        made = prompts(workload, 1)
        assert len(made) == workload.requests
        assert {len(prompt) for prompt in made} == {workload.shared + workload.own}
        if workload.groups:
            assert len({tuple(prompt[: workload.shared]) for prompt in made}) == workload.groups


def test_workloads_share_nothing_with_each_other_and_repeat_themselves():
    starts = [tuple(prompt[:64]) for name in ("S2", "S3", "S4", "S6") for prompt in prompts(WORKLOADS[name], 1)]
    assert len(set(starts)) == len(starts)
    assert prompts(WORKLOADS["S1"], 1) == prompts(WORKLOADS["S1"], 1) != prompts(WORKLOADS["S1"], 2)
