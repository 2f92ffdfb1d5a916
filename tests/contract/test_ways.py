"""Every way to multiply that the levels of this machine have, at its first and last rows, against float64."""

from __future__ import annotations

import numpy as np
import pytest

from minicpm4 import _cpu
from minicpm4.formats.kinds import KINDS
from minicpm4.formats.quant import PackedTensor
from minicpm4.kernels.cpu import CpuOps, emulated_levels, isa_levels
from minicpm4.kernels.layer_weights import Linear
from minicpm4.kernels.ways import Way, levels, markdown, ways
from tests.contract.packed import random_weight

GROUPS = [16, 32, 48, 64, 96, 128, 256, 512]
ROUNDED = {"tiles": 8e-3, "bf16": 5e-3, "narrow panels": 2e-2}
CASES = [
    (level, way, format)
    for level in (*isa_levels(), *emulated_levels())
    for way in ways(level)
    for format in way.formats
]


def matrix(level: str, way: Way, format: str, n: int) -> list[tuple[PackedTensor, np.ndarray]]:
    """Weights that go this way by n rows of x, in an odd number of rows, with groups of each size that
    the format may have; none where an earlier way takes them."""
    layout = "rows" if way.layout == "any" else way.layout
    if _cpu.method(level, format, layout, n, way.narrow) != way.method:
        return []
    row = KINDS[format]
    offsets = format in ("int4", "int8", "int5", "int2")
    found = []
    for group in [size for size in GROUPS if size % row.group == 0] if row.group else [0]:
        cols = 3 * group if group else 131
        cols += group if cols % row.columns else 0
        cols = -(-cols // row.columns) * row.columns
        if not group or cols % group == 0:
            found.append(random_weight(np.random.default_rng(n), 53, (format, group, cols, offsets)))
    return found


@pytest.mark.parametrize(
    ("level", "way", "format"), CASES, ids=[f"{c[0]}-{c[2]}-{c[1].method}-{c[1].first}" for c in CASES]
)
def test_every_way_multiplies(level: str, way: Way, format: str) -> None:
    ops = CpuOps(2, level, narrow=way.narrow)
    counts = (way.first, way.last or way.first + 30, way.last or 515)
    found = [(n, *one) for n in counts for one in matrix(level, way, format, n)]
    assert found
    for n, weight, values in found:
        if way.layout == "panels":
            weight = ops.prepare(weight)
            assert weight.layout == "panels"
        x = np.random.default_rng(n).standard_normal((n, weight.shape[1]), np.float32)
        expected = x.astype(np.float64) @ values.T
        error = np.abs(ops.linear(x, Linear(weight=weight)) - expected).max(axis=1)
        assert (error <= ROUNDED.get(way.method, 1e-4) * np.linalg.norm(expected, axis=1)).all(), (
            n,
            weight.spec,
        )


def test_the_map_knows_what_this_machine_has() -> None:
    known = {name for alike in levels() for name in alike}
    assert {*isa_levels(), *emulated_levels()} <= known
    assert {"avx2", "avxvnni", "avx512_vnni", "avx512_bf16", "amx", "neon", "neon_i8mm"} <= known, (
        "also of other processors"
    )
    assert {name for name, *_ in _cpu.methods()} == {way.method for level in known for way in ways(level)}
    assert all(f"`{name}`" in markdown() for name in known)


def test_levels_that_are_unknown_are_refused() -> None:
    with pytest.raises(ValueError, match="level 'abacus' is unknown"):
        ways("abacus")
