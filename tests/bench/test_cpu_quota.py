"""Which files are written where, on a made-up tree; the kernel's own effect shows in `raysgl bench cluster --cores`."""

import pytest

from raysgl.bench.cpu_quota import PERIOD_US, limited


def test_each_process_gets_a_group_of_its_own(tmp_path):
    (tmp_path / "cgroup.subtree_control").write_text("cpu memory\n")
    with limited([11, 12], 0.4, tmp_path):
        groups = sorted(path for path in tmp_path.iterdir() if path.is_dir())
        assert [(group / "cgroup.procs").read_text() for group in groups] == ["11", "12"]
        assert {(group / "cpu.max").read_text() for group in groups} == {f"{int(0.4 * PERIOD_US)} {PERIOD_US}"}


def test_version_1_has_the_controller_in_a_tree_of_its_own(tmp_path, monkeypatch):
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "cgroup.procs").write_text("")
    made = type(tmp_path).mkdir

    def mkdir(path, *rest, **more):
        """As the kernel does: a new group has its files."""
        made(path, *rest, **more)
        for name in ("cpu.cfs_quota_us", "cpu.cfs_period_us"):
            (path / name).write_text("-1")

    monkeypatch.setattr(type(tmp_path), "mkdir", mkdir)
    with limited([11], 0.25, tmp_path):
        (group,) = (path for path in (tmp_path / "cpu").iterdir() if path.is_dir())
        assert (group / "cpu.cfs_period_us").read_text() == str(PERIOD_US)
        assert (group / "cpu.cfs_quota_us").read_text() == str(PERIOD_US // 4)


def test_without_the_controller_it_says_so(tmp_path):
    (tmp_path / "cgroup.subtree_control").write_text("memory\n")
    with pytest.raises(OSError, match="no CPU controller"), limited([11], 0.4, tmp_path):
        pass
