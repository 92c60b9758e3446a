"""A part of a core for each process, by the kernel's CPU controller: replicas on one machine that do not slow each other down.

Linux, with the right to make control groups (mostly root's).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

PERIOD_US = 20_000
"""Short beside a step, so that a limited process looks like a slow one rather than like one that stops and goes."""


@contextlib.contextmanager
def limited(pids: Iterable[int], cores: float, root: Path = Path("/sys/fs/cgroup")) -> Iterator[None]:
    """Each of these processes, all of its threads together, gets at most `cores` of CPU time per second. OSError if that cannot be asked
    for. root: where control groups are mounted, of version 1 or 2."""
    quota = int(cores * PERIOD_US)
    groups = []
    try:
        for pid in pids:
            group = _parent(root) / f"raysgl-bench-{os.getpid()}-{pid}"
            group.mkdir()
            groups.append(group)
            if (group / "cpu.cfs_quota_us").exists():
                (group / "cpu.cfs_period_us").write_text(str(PERIOD_US))
                (group / "cpu.cfs_quota_us").write_text(str(quota))
            else:
                (group / "cpu.max").write_text(f"{quota} {PERIOD_US}")
            (group / "cgroup.procs").write_text(str(pid))
        yield
    finally:
        for group in groups:
            _remove(group)


def _parent(root: Path) -> Path:
    if (root / "cpu" / "cgroup.procs").exists():
        return root / "cpu"
    if "cpu" in (root / "cgroup.subtree_control").read_text().split():
        return root
    raise OSError(f"no CPU controller for new control groups in {root}")


def _remove(group: Path) -> None:
    """Processes that are still in it go back to the group above; a group that holds any cannot be removed."""
    with contextlib.suppress(OSError):
        for pid in (group / "cgroup.procs").read_text().split():
            with contextlib.suppress(OSError):
                (group.parent / "cgroup.procs").write_text(pid)
        group.rmdir()
