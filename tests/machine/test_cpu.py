"""Cores within affinity, siblings and quotas, in control groups of version 2 and 1."""

from __future__ import annotations

from pathlib import Path

import pytest

from minicpm4.machine import cpu, cpu_name, cpu_quota, default_threads, logical_cores, physical_cores, system


@pytest.fixture
def groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty system without limits; the process is in the group /outer/inner."""
    monkeypatch.setattr(system, "PROC", tmp_path / "proc")
    monkeypatch.setattr(system, "GROUPS", tmp_path)
    (tmp_path / "proc" / "self").mkdir(parents=True)
    (tmp_path / "proc" / "self" / "cgroup").write_text("0::/outer/inner\n")
    return tmp_path


def test_quota_of_nested_groups(groups: Path) -> None:
    assert cpu_quota() is None
    (groups / "outer" / "inner").mkdir(parents=True)
    (groups / "outer" / "inner" / "cpu.max").write_text("max 100000\n")
    (groups / "outer" / "cpu.max").write_text("150000 100000\n")
    assert cpu_quota() == 1.5
    (groups / "outer" / "cpu.max").write_text("garbage")
    assert cpu_quota() is None


@pytest.mark.parametrize("place", ["cpu", "cpu/docker/1"])
def test_quota_of_version_1(groups: Path, place: str) -> None:
    (groups / "proc" / "self" / "cgroup").write_text("5:memory:/x\n4:cpu,cpuacct:/docker/1\n")
    (groups / place).mkdir(parents=True)
    (groups / place / "cpu.cfs_quota_us").write_text("50000")
    (groups / place / "cpu.cfs_period_us").write_text("100000")
    assert cpu_quota() == 0.5
    (groups / place / "cpu.cfs_quota_us").write_text("-1")
    assert cpu_quota() is None


def test_hyperthreads_count_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "_usable_cpus", lambda: {0, 1, 2, 3})
    monkeypatch.setattr(system, "CPUS", tmp_path)
    assert physical_cores() == logical_cores() == 4  # nothing known about them
    for number, siblings in enumerate(["0,2", "1,3", "0,2", "1,3"]):
        folder = tmp_path / f"cpu{number}" / "topology"
        folder.mkdir(parents=True)
        (folder / "thread_siblings_list").write_text(siblings + "\n")
    assert physical_cores() == 2 and logical_cores() == 4


def test_quota_limits_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "physical_cores", lambda: 8)
    for quota, expected in ((None, 8), (2.5, 3), (0.1, 1), (64.0, 8)):
        monkeypatch.setattr(cpu, "cpu_quota", lambda quota=quota: quota)
        assert default_threads() == expected


def test_the_name_is_read_from_the_first_processor(groups: Path) -> None:
    (groups / "proc" / "cpuinfo").write_text("processor : 0\nmodel name\t: Quick 9000\nflags : a b\n")
    assert cpu_name() == "Quick 9000"
    (groups / "proc" / "cpuinfo").unlink()
    assert cpu_name()
