"""Every op table of this machine: the extension at each instruction set, with one thread and several,
and where its kernels like weights in another layout, in that one too."""

from __future__ import annotations

from dataclasses import replace

import pytest

from minicpm4.formats.quant import PackedTensor
from minicpm4.kernels.contract import OpTable
from minicpm4.kernels.cpu import CpuOps, emulated_levels, isa_levels
from minicpm4.kernels.layer_weights import Linear
from minicpm4.kernels.ref import RefOps
from minicpm4.kernels.step import Array, Ints


class PreparedOps(CpuOps):
    """Reads every weight matrix in the layout that the table prepares it in."""

    def embed(self, table: PackedTensor, ids: Ints, scale: float, out: Array | None = None) -> Array:
        return super().embed(self.prepare(table), ids, scale, out)

    def linear(self, x: Array, linear: Linear, out: Array | None = None) -> Array:
        return super().linear(x, self._ready(linear), out)

    def add_linear(self, x: Array, a: Array, linear: Linear, scale: float) -> Array:
        return super().add_linear(x, a, self._ready(linear), scale)

    def _linears(self, x: Array, *products: tuple[Linear, Array]) -> list[Array]:
        return super()._linears(x, *((self._ready(linear), out) for linear, out in products))

    def _ready(self, linear: Linear) -> Linear:
        return replace(linear, weight=self.prepare(linear.weight))


LEVELS = [*isa_levels(), *emulated_levels()]
TABLES: list[tuple[str, int, type[CpuOps]]] = [
    *((isa, 1, CpuOps) for isa in LEVELS),
    *((isa, 1, PreparedOps) for isa in LEVELS if CpuOps(1, isa).prepares),
    *((isa, 3, PreparedOps) for isa in (isa_levels()[-1], *emulated_levels())),
]


@pytest.fixture(scope="session", params=TABLES, ids=lambda t: f"{t[0]}-{t[1]}-{t[2].__name__}")
def ops(request: pytest.FixtureRequest) -> CpuOps:
    isa, threads, table = request.param
    return table(threads, isa)


@pytest.fixture(scope="session", params=[None, *TABLES], ids=lambda t: f"{t[0]}-{t[1]}" if t else "ref")
def any_ops(request: pytest.FixtureRequest) -> OpTable:
    """As ``ops``, and the truth itself."""
    if request.param is None:
        return RefOps()
    isa, threads, table = request.param
    return table(threads, isa)
