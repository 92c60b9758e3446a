"""Which rank goes where in a placement group, and what groups that find no room are waiting for, in words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from ray.util.placement_group import placement_group_table

WAITING = ("PENDING", "RESCHEDULING")


def bundle_order(nodes: Mapping[int, str], here: str) -> list[int]:
    """The bundles of a replica's group in the order of its ranks. nodes: bundle -> node; here: the replica's own node.

    Rank 0 is beside the replica, and the ranks of a node are neighbours: they talk most.
    """
    return sorted(nodes, key=lambda bundle: (nodes[bundle] != here, nodes[bundle], bundle))


def waiting_for(application: str, labels: Mapping[str, Mapping[str, str]]) -> str:
    """What the application's replicas need that no node has free now, or an empty string. Asks Ray's GCS once. labels: by deployment,
    those that a node must have."""
    needs: Counter[str] = Counter()
    for group in placement_group_table().values():
        if group["state"] in WAITING and f"{application}#" in group["name"]:
            deployment = group["name"].partition(f"{application}#")[2].partition("#")[0]
            wanted = ", ".join(f"{name}: {value}" for name, value in sorted(labels.get(deployment, {}).items()))
            need = _need(list(group["bundles"].values()), group["strategy"])
            needs[f"{need}, labelled {wanted}" if wanted else need] += 1
    return "; ".join(need if count == 1 else f"{count} times {need}" for need, count in needs.items())


def _need(bundles: list[dict[str, float]], strategy: str) -> str:
    total: Counter[str] = Counter()
    for bundle in bundles:
        total.update({name: amount for name, amount in bundle.items() if amount >= 0.01})
    resources = " and ".join(f"{amount:g} {name}" for name, amount in sorted(total.items(), reverse=True))
    return (
        f"{resources} on one node" if strategy == "STRICT_PACK" or len(bundles) == 1 else f"{resources} in {len(bundles)} parts"
    )
