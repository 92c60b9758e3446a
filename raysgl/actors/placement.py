"""What placement groups that find no room are waiting for, in words."""

from __future__ import annotations

from collections import Counter

from ray.util.placement_group import placement_group_table

WAITING = ("PENDING", "RESCHEDULING")


def waiting_for(application: str) -> str:
    """What the application's replicas need that no node has free now, or an empty string. Asks Ray's GCS once."""
    needs: Counter[str] = Counter()
    for group in placement_group_table().values():
        if group["state"] in WAITING and f"{application}#" in group["name"]:
            needs[_need(list(group["bundles"].values()), group["strategy"])] += 1
    return "; ".join(need if count == 1 else f"{count} times {need}" for need, count in needs.items())


def _need(bundles: list[dict[str, float]], strategy: str) -> str:
    total: Counter[str] = Counter()
    for bundle in bundles:
        total.update({name: amount for name, amount in bundle.items() if amount >= 0.01})
    resources = " and ".join(f"{amount:g} {name}" for name, amount in sorted(total.items(), reverse=True))
    return (
        f"{resources} on one node" if strategy == "STRICT_PACK" or len(bundles) == 1 else f"{resources} in {len(bundles)} parts"
    )
