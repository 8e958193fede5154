"""Limits of control groups, as Linux writes them in both versions."""

from __future__ import annotations

from pathlib import Path

import pytest

from recycle_onnx.machine.cgroup import CgroupLimits, limits


def write(folder: Path, **files: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text + "\n")


def found(tmp_path: Path, groups: str) -> CgroupLimits:
    (tmp_path / "cgroup").write_text(groups)
    return limits(tmp_path / "cgroup", tmp_path / "mount")


def test_version_2(tmp_path: Path) -> None:
    stat = "anon 5\ninactive_file 100"
    write(
        tmp_path / "mount/a/b", memory__max="1000", memory__current="600", memory__stat=stat, cpu__max="150000 100000"
    )
    assert found(tmp_path, "0::/a/b\n") == CgroupLimits(1000, 500, 1.5)


def test_the_tightest_of_the_groups_around_counts(tmp_path: Path) -> None:
    write(tmp_path / "mount/a/b", memory__max="1000", memory__current="100", cpu__max="max 100000")
    write(tmp_path / "mount/a", memory__max="800", memory__current="750", cpu__max="50000 100000")
    assert found(tmp_path, "0::/a/b\n") == CgroupLimits(800, 50, 0.5)


def test_version_1(tmp_path: Path) -> None:
    memory, cpu = tmp_path / "mount/memory/x", tmp_path / "mount/cpu,cpuacct/x"
    write(memory, memory__limit_in_bytes="4096", memory__usage_in_bytes="1096", memory__stat="total_inactive_file 96")
    write(cpu, cpu__cfs_quota_us="200000", cpu__cfs_period_us="100000")
    assert found(tmp_path, "4:memory:/x\n2:cpu,cpuacct:/x\n7:blkio:/x\n") == CgroupLimits(4096, 3096, 2.0)


def test_a_container_sees_its_own_group_at_the_top(tmp_path: Path) -> None:
    write(tmp_path / "mount", memory__max="1000", memory__current="0")
    assert found(tmp_path, "0::/docker/1234\n") == CgroupLimits(1000, 1000, None)


@pytest.mark.parametrize("groups", ["0::/\n", "4:memory:/x\n2:cpu:/x\n"])
def test_no_limit(groups: str, tmp_path: Path) -> None:
    write(tmp_path / "mount/x", memory__limit_in_bytes="9223372036854771712", cpu__cfs_quota_us="-1")
    write(tmp_path / "mount/memory/x", memory__limit_in_bytes="9223372036854771712")
    write(tmp_path / "mount/cpu/x", cpu__cfs_quota_us="-1", cpu__cfs_period_us="100000")
    write(tmp_path / "mount", memory__max="max", cpu__max="max 100000")
    assert found(tmp_path, groups) == CgroupLimits()


def test_another_system_has_none(tmp_path: Path) -> None:
    assert limits(tmp_path / "cgroup", tmp_path) == CgroupLimits()
