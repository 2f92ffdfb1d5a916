"""What the system says of memory, of version 2 and version 1 of control groups."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from minicpm4.machine import available_memory, peak_memory, resident_memory, system


@pytest.fixture
def fake_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(system, "PROC", tmp_path / "proc")
    monkeypatch.setattr(system, "GROUPS", tmp_path / "cgroup")
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/meminfo").write_text("MemTotal: 100 kB\nMemAvailable: 8000000 kB\n")
    (tmp_path / "proc/self/cgroup").write_text("0::/user/job\n")
    (tmp_path / "cgroup/user/job").mkdir(parents=True)
    return tmp_path


def test_available_memory_without_limits(fake_system: Path) -> None:
    assert available_memory() == 8_000_000 * 1024


def test_a_group_above_limits_and_its_file_cache_is_available(fake_system: Path) -> None:
    group = fake_system / "cgroup/user"
    (group / "memory.max").write_text("1000000\n")
    (group / "memory.current").write_text("700000\n")
    (group / "memory.stat").write_text("anon 5\ninactive_file 50000\n")
    (group / "job/memory.max").write_text("max\n")
    (group / "job/memory.current").write_text("700000\n")
    assert available_memory() == 350_000


def test_version_1_groups(fake_system: Path) -> None:
    (fake_system / "proc/self/cgroup").write_text("5:cpu:/x\n4:memory:/docker/1\n")
    group = fake_system / "cgroup/memory/docker/1"
    group.mkdir(parents=True)
    (group / "memory.limit_in_bytes").write_text("900")
    (group / "memory.usage_in_bytes").write_text("1000")
    assert available_memory() == 0


def test_this_machine_tells() -> None:
    available = available_memory()
    assert available is not None and available > 0 and resident_memory() > 1 << 20


def test_peak_memory_is_plausible() -> None:
    assert 1 << 20 < peak_memory() < 1 << 45


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux counts the starting process")
def test_peak_memory_is_of_this_process_alone() -> None:
    code = "from minicpm4.machine import peak_memory; print(peak_memory())"
    small = "import subprocess, sys; subprocess.run([sys.executable, '-c', sys.argv[1]], check=True)"
    large = f"held = b'1' * (600 << 20); {small}"
    peaks = [
        int(subprocess.run([sys.executable, "-c", start, code], capture_output=True, check=True).stdout)
        for start in (small, large)
    ]
    assert peaks[1] < peaks[0] + (100 << 20)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells what is taken")
@pytest.mark.parametrize("limit", ["RLIMIT_AS", "RLIMIT_DATA"])
def test_limits_of_the_process_are_seen(limit: str) -> None:
    code = f"""
import resource
from minicpm4.machine import available_memory
resource.setrlimit(resource.{limit}, (2 << 30, resource.RLIM_INFINITY))
assert 1 << 30 < available_memory() < 2 << 30, available_memory()
"""
    subprocess.run([sys.executable, "-c", code], check=True)
