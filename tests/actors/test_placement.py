"""Where a replica's shards go, and what is said where there is no room. What Ray itself does with it: test_launcher, test_autoscaler."""

from __future__ import annotations

import itertools

import hypothesis.strategies as st
import pytest
from hypothesis import given

from raysgl import app
from raysgl.actors import placement
from raysgl.actors.placement import bundle_order, waiting_for
from raysgl.config import ModelConfig, ServerConfig


@given(st.lists(st.sampled_from("abcd"), min_size=1, max_size=16), st.data())
def test_ranks_of_a_node_are_neighbours_and_the_first_is_at_home(names, data):
    nodes = dict(enumerate(names))
    here = data.draw(st.sampled_from(names))
    order = bundle_order(nodes, here)
    assert sorted(order) == list(nodes)
    path = [nodes[bundle] for bundle in order]
    assert path[0] == here
    assert len([1 for left, right in itertools.pairwise(path) if left != right]) == len(set(names)) - 1


def options(**settings):
    """What Serve is told of a model's replicas."""
    engine = {"model_path": "/m", "served_model_name": "a b", "tp_size": 2, "device": "cuda"}
    model = ModelConfig.model_validate({"engine": engine, **settings})
    return app._replicas(model, 3, ServerConfig())._bound_deployment


def test_a_shard_has_a_gpu_and_a_replica_one_node_unless_it_may_spread():
    made = options(num_cpus_per_shard=2)
    config = made._replica_config
    assert made.name == "Engine-3-a-b"
    assert config.placement_group_bundles == [{"CPU": 2.0, "GPU": 1}] * 2
    assert config.placement_group_strategy == "STRICT_PACK"
    assert config.placement_group_bundle_label_selector is None
    assert not config.ray_actor_options.get("num_gpus"), "the replica's own actor would take a shard's GPU"
    spread = options(placement_strategy="PACK", node_labels={"pool": "h100"})._replica_config
    assert spread.placement_group_strategy == "PACK"
    assert spread.placement_group_bundle_label_selector == [{"pool": "h100"}] * 2


def group(name, bundles, strategy="STRICT_PACK", state="PENDING"):
    return {"name": name, "bundles": dict(enumerate(bundles)), "strategy": strategy, "state": state}


@pytest.mark.parametrize(
    ("groups", "said"),
    [
        ([], ""),
        ([group("SERVE_REPLICA::app#Engine-0-m#x", [{"CPU": 1, "GPU": 1}] * 2)], "2 GPU and 2 CPU on one node"),
        ([group("SERVE_REPLICA::app#Engine-0-m#x", [{"GPU": 1}] * 2, "PACK")], "2 GPU in 2 parts"),
        ([group("SERVE_REPLICA::app#Engine-0-m#x", [{"CPU": 0.001}], state="CREATED")], ""),
        ([group("SERVE_REPLICA::other#Engine-0-m#x", [{"CPU": 1}])], ""),
        (
            [group(f"SERVE_REPLICA::app#Engine-1-n#{i}", [{"CPU": 3}]) for i in range(2)],
            "2 times 3 CPU on one node, labelled gpu: big, pool: h100",
        ),
    ],
)
def test_what_is_missing_is_said(monkeypatch, groups, said):
    monkeypatch.setattr(placement, "placement_group_table", lambda: dict(enumerate(groups)))
    assert waiting_for("app", {"Engine-0-m": {}, "Engine-1-n": {"pool": "h100", "gpu": "big"}}) == said
