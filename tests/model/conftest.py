"""Every op table of this machine, and the truth."""

import pytest

from minicpm4 import _cpu
from minicpm4.kernels.cpu import CpuOps
from minicpm4.kernels.ref import RefOps


@pytest.fixture(params=["ref", *_cpu.isa_levels(), *_cpu.emulated_levels()], scope="module")
def ops(request):
    return RefOps() if request.param == "ref" else CpuOps(threads=2, isa=request.param)


@pytest.fixture(scope="module")
def ref_ops():
    return RefOps()
