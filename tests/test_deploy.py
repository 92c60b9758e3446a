"""The cluster configs that users copy: Ray and raysgl accept them."""

from __future__ import annotations

import importlib
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.serve import Application
from ray.serve.schema import ServeDeploySchema

from raysgl.actors.autoscaling import TokenPolicy
from raysgl.config import AppConfig
from raysgl.config_file import load

ROOT = Path(__file__).parents[1]
SERVE_CONFIGS = sorted((ROOT / "serve_configs").glob("*.yaml"))
CONFIGS = ["cluster.yaml", "examples/cluster-static.yaml"]

# The fields of KubeRay's v1 types (1.4), required ones in capitals: its schema comes with the operator alone.
RAY_SERVICE = (
    "serveConfigV2 RAYCLUSTERCONFIG serveService upgradeStrategy excludeHeadPodFromServeSvc rayClusterDeletionDelaySeconds"
)
RAY_CLUSTER = (
    "HEADGROUPSPEC workerGroupSpecs rayVersion enableInTreeAutoscaling autoscalerOptions headServiceAnnotations suspend "
    "managedBy gcsFaultToleranceOptions"
)
HEAD_GROUP = "serviceType headService enableIngress RAYSTARTPARAMS TEMPLATE resources labels"
WORKER_GROUP = (
    "GROUPNAME replicas MINREPLICAS MAXREPLICAS numOfHosts idleTimeoutSeconds RAYSTARTPARAMS TEMPLATE scaleStrategy suspend "
    "resources labels"
)


@pytest.mark.parametrize("name", CONFIGS)
def test_ray_accepts_the_cluster_config(name):
    validate_config(prepare_config(yaml.safe_load((ROOT / name).read_text())))


@pytest.mark.parametrize("name", CONFIGS)
def test_ray_knows_every_option_of_its_commands(name):
    from ray.scripts.scripts import cli

    config = yaml.safe_load((ROOT / name).read_text())
    started = []
    for line in config["head_start_ray_commands"] + config["worker_start_ray_commands"]:
        words = shlex.split(line)
        program = next(i for i, word in enumerate(words) if word.endswith("/bin/ray"))
        command = cli.commands[words[program + 1]]
        made = command.make_context(command.name, words[program + 2 :])
        started.append((command.name, made.params.get("head")))
    assert started == [("stop", None), ("start", True), ("stop", None), ("start", False)]


def test_ray_up_of_machines_one_has(tmp_path):
    """The real command; ssh and rsync only take down what they should do."""
    said = tmp_path / "said"
    for name in ("ssh", "rsync"):
        (tmp_path / name).write_text(f"#!/bin/sh\nprintf '%s %s\\n' {name} \"$*\" >> {said}\n")
        (tmp_path / name).chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "RAY_TMPDIR": str(tmp_path)}
    command = [sys.executable, "-m", "ray.scripts.scripts", "up", "-y", "--no-config-cache", "examples/cluster-static.yaml"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = [line for line in said.read_text().splitlines() if "ubuntu@192.0.2.10" in line]
    wanted = (
        r"rsync .* \./ ubuntu@192.0.2.10:~/raysgl/",
        r"rsync .* ubuntu@192.0.2.10:~/ray_bootstrap_config.yaml",
        r"ssh .*cd ~/raysgl && make .venv/.serve",
        r"ssh .*~/raysgl/.venv/bin/ray stop",
        r"ssh .*~/raysgl/.venv/bin/ray start --head --port=6379 --autoscaling-config=~/ray_bootstrap_config.yaml",
    )
    found = [next(i for i, line in enumerate(lines) if re.search(pattern, line)) for pattern in wanted]
    assert found == sorted(found)


def test_gpu_nodes_come_only_when_needed():
    config = yaml.safe_load((ROOT / "cluster.yaml").read_text())
    nodes = config["available_node_types"]
    head = nodes.pop(config["head_node_type"])
    assert "GPU" not in head["resources"]
    assert nodes
    assert all(node["resources"]["GPU"] >= 1 and node["min_workers"] == 0 for node in nodes.values())


def test_the_rayservice_has_no_field_that_kuberay_lacks():
    spec = yaml.safe_load((ROOT / "examples/kuberay.yaml").read_text())["spec"]
    cluster = spec["rayClusterConfig"]
    groups = [(cluster["headGroupSpec"], HEAD_GROUP), *((group, WORKER_GROUP) for group in cluster["workerGroupSpecs"])]
    for given, fields in [(spec, RAY_SERVICE), (cluster, RAY_CLUSTER), *groups]:
        names = {name.lower() for name in given}
        assert names <= {field.lower() for field in fields.split()}
        assert names >= {field.lower() for field in fields.split() if field.isupper()}
    for group, _ in groups:
        assert all(isinstance(value, str) for value in group["rayStartParams"].values()), "the API server wants strings"
        for container in group["template"]["spec"]["containers"]:
            amounts = container["resources"]
            assert amounts["limits"].keys() == amounts["requests"].keys()
            assert all(re.fullmatch(r"\d+(Gi|Mi|m)?", str(value)) for part in amounts.values() for value in part.values())


@pytest.mark.parametrize("name", ["examples/kuberay.yaml", *(f"serve_configs/{path.name}" for path in SERVE_CONFIGS)])
def test_serve_and_raysgl_accept_the_serve_config_and_build_its_application(name, tmp_path):
    """Serve ignores settings that it does not know; raysgl's own reading of the file refuses them."""
    text = (ROOT / name).read_text()
    if name == "examples/kuberay.yaml":
        text = yaml.safe_load(text)["spec"]["serveConfigV2"]
    (tmp_path / "serve.yaml").write_text(text)
    config = load(tmp_path / "serve.yaml")
    (application,) = ServeDeploySchema.model_validate(yaml.safe_load(text)).applications
    module, _, builder = application.import_path.partition(":")
    args = AppConfig.model_validate(application.args)
    assert args == config
    built = getattr(importlib.import_module(module), builder)(args)
    assert isinstance(built, Application)
    deployments = [engine._bound_deployment for engine in built._bound_deployment.init_args[1:]]
    assert [deployment.init_args[0] for deployment in deployments] == args.models
    for deployment, model in zip(deployments, args.models):
        assert len(deployment._replica_config.placement_group_bundles) == model.engine.tp_size
        autoscaling = deployment._deployment_config.autoscaling_config
        if model.autoscaling is None:
            assert autoscaling is None and deployment.num_replicas == model.num_replicas
        else:
            assert (autoscaling.min_replicas, autoscaling.max_replicas) == (
                model.autoscaling.min_replicas,
                model.autoscaling.max_replicas,
            )
            policy = autoscaling.policy
            assert policy.get_policy() is TokenPolicy
            assert TokenPolicy(**policy.policy_kwargs)


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
