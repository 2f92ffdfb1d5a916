"""A row's result has the same bits whatever rows stand beside it, for any threads and layout of weights."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from minicpm4.formats.quant import PackedTensor
from minicpm4.kernels.cpu import CpuOps, isa_levels
from minicpm4.kernels.layer_weights import Linear
from tests.contract.packed import FORMATS, format_id, random_weight

LEVELS = [level for level in isa_levels() if level != "amx"]
SINGLE = 40  # rows that are also multiplied alone
# Long rows: several blocks, and groups that end within them.
CASES = [
    *FORMATS,
    ("int8", 48, 624, True),
    ("int4", 96, 768, True),
    ("ternary", 192, 1152, False),
    ("bf16", 0, 1100, False),
]


def tables(level: str, narrow: bool) -> list[CpuOps]:
    return [CpuOps(threads, level, narrow=narrow) for threads in (1, 2)]


def assert_rows_are_alone(ops: list[CpuOps], weights: list[PackedTensor], x: NDArray, seed: int) -> None:
    rng = np.random.default_rng(seed)
    bias = rng.standard_normal(weights[0].shape[0], np.float32)
    one, two = ops
    linears = [Linear(weight=weight, bias=bias) for weight in weights]
    alone = np.concatenate([one.linear(x[i : i + 1], linears[0]) for i in range(SINGLE)])
    for n in (*range(1, SINGLE + 1), len(x)):
        for table, linear in zip((one, two) if n % 2 else (two, one), linears, strict=True):
            got = table.linear(x[:n], linear)[:SINGLE]
            np.testing.assert_array_equal(got.view(np.int32), alone[:n].view(np.int32), str(n))
    start = rng.standard_normal((len(x), len(bias)), np.float32)
    added = np.concatenate(
        [one.add_linear(start[i : i + 1].copy(), x[i : i + 1], linears[0], 0.3) for i in range(SINGLE)]
    )
    for n in (2, 9, 17, 33, len(x)):
        got = two.add_linear(start[:n].copy(), x[:n], linears[1], 0.3)[:SINGLE]
        np.testing.assert_array_equal(got.view(np.int32), added[:n].view(np.int32), str(n))


# Levels that multiply grouped weights by the integers of linear/quantise.hpp.
INTEGERS = [level for level in ("avx2", "avxvnni", "avx512_vnni", "avx512_bf16") if level in LEVELS]


@pytest.mark.skipif(len(INTEGERS) < 2, reason="one level of this machine multiplies by such integers")
@pytest.mark.parametrize("narrow", [False, True])
@pytest.mark.parametrize("case", [case for case in CASES if case[1]], ids=format_id)
def test_levels_of_integers_agree_to_the_bit(case: tuple[str, int, int, bool], narrow: bool) -> None:
    """With activations of 8 bits by weights of fewer: by those of 8 AVX2 keeps 16."""
    rng = np.random.default_rng(case[2])
    weight, _ = random_weight(rng, 75, case)
    x = rng.standard_normal((23, case[2]), np.float32)
    levels = INTEGERS[narrow and case[0] == "int8" :]
    found = []
    for level in levels:
        ops = CpuOps(2, level, narrow=narrow)
        linear = Linear(weight=ops.prepare(weight))
        found += [ops.linear(x[:n], linear).view(np.int32) for n in (1, 6, 23)]
    for other in range(3, len(found)):
        np.testing.assert_array_equal(found[other], found[other % 3], levels[other // 3])


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("case", CASES, ids=format_id)
def test_products_of_a_row_do_not_hang_on_others(level: str, case: tuple[str, int, int, bool]) -> None:
    """In both layouts, where a level has two."""
    rng = np.random.default_rng(case[2])
    ops = tables(level, narrow=False)
    weight, _ = random_weight(rng, 133, case)
    x = (rng.standard_normal((514, case[2])) * rng.uniform(0.1, 9, case[2])).astype(np.float32)
    assert_rows_are_alone(ops, [weight, ops[0].prepare(weight)], x, 1)


@pytest.mark.parametrize("level", [isa for isa in LEVELS if "int8" in CpuOps(1, isa).activations])
@pytest.mark.parametrize("case", [case for case in CASES if case[1]], ids=format_id)
def test_with_activations_of_8_bits_neither(level: str, case: tuple[str, int, int, bool]) -> None:
    rng = np.random.default_rng(case[2])
    ops = tables(level, narrow=True)
    weight = ops[0].prepare(random_weight(rng, 133, case)[0])
    assert weight.layout == "panels"
    assert_rows_are_alone(ops, [weight, weight], rng.standard_normal((130, case[2]), np.float32), 2)
