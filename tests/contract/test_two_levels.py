"""Scales of two levels: products and embeddings are to the bit those of the same scales in float32."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from minicpm4 import _cpu
from minicpm4.formats.packing import flattened, unpack
from minicpm4.formats.quant import PackedTensor, QuantSpec, ScaleForm, packed_shapes, scale_types
from minicpm4.kernels.cpu import CpuOps
from minicpm4.kernels.layer_weights import Linear

# Those of files, and groups that are as long as what shares a float16.
CASES: list[tuple[str, int, ScaleForm, bool]] = [
    ("int6", 16, "steps", False),
    ("int5", 32, "steps", True),
    ("int4", 32, "steps", True),
    ("int3", 16, "steps", False),
    ("int2", 16, "half steps", True),
    ("int2", 32, "half steps", False),
    ("int8", 64, "steps", True),
    ("int6", 256, "steps", True),
    ("ternary", 64, "steps", False),
]


def drawn(seed: int, rows: int, case: tuple[str, int, ScaleForm, bool]) -> PackedTensor:
    """A matrix of 768 columns."""
    kind, group, form, offsets = case
    rng, spec = np.random.default_rng(seed), QuantSpec(kind=kind, group_size=group)
    shapes, parts = packed_shapes((rows, 768), spec, "rows"), dict[str, Any]()
    for part, one in scale_types(form, offsets).items():
        low, high = (-128, 128) if one == np.int8 else (0, 256)
        whole = one.kind != "f"
        values = rng.integers(low, high, shapes[part]) if whole else rng.uniform(-0.1, 0.1, shapes[part])
        parts[part] = values.astype(one)
    codes = rng.integers(0, 3 if kind == "ternary" else 1 << spec.row.bits, (rows, 768)).astype(np.uint8)
    return PackedTensor(
        spec=spec, shape=(rows, 768), codes=spec.row.pack(codes.view(spec.row.codes)), **parts
    )


@pytest.mark.parametrize("case", CASES, ids=lambda one: f"{one[0]}-g{one[1]}-{one[2]}")
def test_products_are_those_of_float32_scales(ops: CpuOps, case: tuple[str, int, ScaleForm, bool]) -> None:
    for n in (1, 2, 5, 9, 16, 17, 40):
        weight = drawn(n, 37, case)
        plain, x = flattened(weight), np.random.default_rng(n).standard_normal((n, 768), np.float32)
        assert weight.two_level and not plain.two_level and weight.nbytes < plain.nbytes
        found = ops.linear(x, Linear(weight=weight))
        np.testing.assert_array_equal(found, ops.linear(x, Linear(weight=plain)))
        expected = x.astype(np.float64) @ unpack(weight).T.astype(np.float64)
        assert np.linalg.norm(found - expected) <= 8e-3 * np.linalg.norm(expected)


@pytest.mark.parametrize("case", CASES, ids=lambda one: f"{one[0]}-g{one[1]}-{one[2]}")
def test_embeddings_are_those_of_the_truth(ops: CpuOps, case: tuple[str, int, ScaleForm, bool]) -> None:
    table, ids = drawn(0, 21, case), np.array([20, 0, 7, 7, 16], np.int32)
    np.testing.assert_array_equal(ops.embed(table, ids, 1.0), ops.embed(flattened(table), ids, 1.0))
    np.testing.assert_allclose(ops.embed(table, ids, 3.0), 3 * unpack(table)[ids], rtol=1e-5, atol=1e-5)


CODES, STEPS, SUPERS = np.zeros((4, 128), np.uint8), np.zeros((4, 8), np.int8), np.ones((4, 1), np.float16)
BAD = {
    "floats": ((CODES, SUPERS.repeat(8, 1), None, SUPERS, None), "weight scales has the wrong dtype"),
    "supers": ((CODES, STEPS, None, SUPERS.astype(np.float32), None), "super-scales has the wrong dtype"),
    "shape": ((CODES, STEPS, None, SUPERS.repeat(2, 1), None), "super-scales has shape"),
    "one level": ((CODES, STEPS, None, None, None), "weight scales has the wrong dtype"),
    "offsets": ((CODES, STEPS, STEPS, SUPERS, None), "another form than scales"),
    "no offsets": ((CODES, STEPS, None, SUPERS, SUPERS), "another form than scales"),
    "both": ((CODES, STEPS.view(np.uint8), STEPS, SUPERS, SUPERS), "another form than scales"),
    "mixed": ((CODES, STEPS, STEPS.view(np.uint8), SUPERS, SUPERS), "weight offsets has the wrong dtype"),
}


@pytest.mark.parametrize("name", BAD)
def test_arrays_that_do_not_belong_together_are_refused(name: str) -> None:
    arrays, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        _cpu.Weight("int4", "rows", 4, 256, 32, *arrays)


def test_groups_that_share_nothing_are_refused() -> None:
    codes, steps = np.zeros((4, 96), np.uint8), np.zeros((4, 2), np.int8)
    with pytest.raises(ValueError, match="groups of 96 have no scales of two levels"):
        _cpu.Weight("int4", "rows", 4, 192, 96, codes, steps, None, np.ones((4, 0), np.float16), None)
