"""Every op table of this machine, and the truth."""

from pathlib import Path

import pytest

from minicpm4 import _cpu
from minicpm4.kernels.cpu import CpuOps
from minicpm4.kernels.ref import RefOps
from minicpm4.model.packed_cache import LIMIT_VARIABLE
from tests.fixtures.random_checkpoint import make_checkpoint
from tests.model.kept import keep_in


@pytest.fixture(params=["ref", *_cpu.isa_levels(), *_cpu.emulated_levels()], scope="module")
def ops(request):
    return RefOps() if request.param == "ref" else CpuOps(threads=2, isa=request.param)


@pytest.fixture(scope="module")
def ref_ops():
    return RefOps()


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where converted weights are kept in this test, however quick they are to convert."""
    monkeypatch.delenv(LIMIT_VARIABLE, raising=False)
    return keep_in(tmp_path / "kept", monkeypatch)


@pytest.fixture
def folder(tmp_path: Path, place: Path) -> Path:
    """A random model in bf16."""
    return make_checkpoint(tmp_path / "model", dtype="bfloat16")
