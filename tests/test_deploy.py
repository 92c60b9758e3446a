"""The cluster configs that users copy: Ray and raysgl accept them."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

from raysgl.config import AppConfig

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("name", ["cluster.yaml", "examples/cluster-static.yaml"])
def test_ray_accepts_the_cluster_config(name):
    validate_config(prepare_config(yaml.safe_load((ROOT / name).read_text())))


def test_gpu_nodes_come_only_when_needed():
    config = yaml.safe_load((ROOT / "cluster.yaml").read_text())
    nodes = config["available_node_types"]
    head = nodes.pop(config["head_node_type"])
    assert "GPU" not in head["resources"]
    assert nodes
    assert all(node["resources"]["GPU"] >= 1 and node["min_workers"] == 0 for node in nodes.values())


def test_the_rayservice_has_a_config_that_raysgl_accepts():
    service = yaml.safe_load((ROOT / "examples/kuberay.yaml").read_text())
    assert (service["apiVersion"], service["kind"]) == ("ray.io/v1", "RayService")
    (application,) = yaml.safe_load(service["spec"]["serveConfigV2"])["applications"]
    assert application["import_path"] == "raysgl.app:build"
    config = AppConfig.model_validate(application["args"])
    cluster = service["spec"]["rayClusterConfig"]
    (workers,) = cluster["workerGroupSpecs"]
    limits = workers["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert int(limits["nvidia.com/gpu"]) >= config.models[0].engine.tp_size
    drain = config.models[0].drain_timeout_s + config.server.drain_timeout_s
    assert workers["template"]["spec"]["terminationGracePeriodSeconds"] >= drain
    pinned = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line)
    assert cluster["rayVersion"] == pinned["ray"]
    assert f"ray:{pinned['ray']}-" in (ROOT / "examples/Dockerfile").read_text()
