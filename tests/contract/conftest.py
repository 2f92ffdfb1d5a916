"""Every op table of this machine: the extension at each instruction set, with one thread and several."""

from __future__ import annotations

import pytest

from minicpm4.kernels.cpu import CpuOps, isa_levels

TABLES = [(isa, 1) for isa in isa_levels()] + [(isa_levels()[-1], 3)]


@pytest.fixture(scope="session", params=TABLES, ids=lambda table: f"{table[0]}-{table[1]}")
def ops(request: pytest.FixtureRequest) -> CpuOps:
    isa, threads = request.param
    return CpuOps(threads, isa)
