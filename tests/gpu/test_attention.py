"""Pages, the choice of blocks and attention, on the GPU or in Triton's interpreter: against float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from minicpm4.errors import UnsupportedError
from minicpm4.kernels.ref import RefOps
from minicpm4.kernels.step import Selection
from tests.contract.paged import (
    RELEASED,
    SMALL,
    Paged,
    Ranges,
    beside_truth,
    block_scores_truth,
    check_choice,
    config,
    rounded,
    unrotated,
)
from tests.gpu.arrays import DEVICE, OnArrays

# NumPy, which the interpreter computes with, warns where a GPU goes on.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")
GPU = DEVICE.type == "cuda"
# What bf16 queries, weights and pages may lose; the interpreter cuts off where a GPU rounds.
NORM = 6e-3 if GPU else 2e-2
SHAPES: list[tuple[dict[str, Any], int, int]] = [(SMALL, 16, 1), (SMALL, 80, 3), (RELEASED, 64, 16)]
if GPU:
    SHAPES += [(RELEASED, 128, 16), (RELEASED, 128, 4), ({**SMALL, "block_size": 32}, 256, 3)]


@pytest.fixture(scope="module")
def ops() -> OnArrays:
    return OnArrays()


def rows_of(world: Paged) -> list[tuple[int, int]]:
    """What a step has of each sequence: all, in the interpreter the last rows, which see most."""
    return [(0 if GPU else max(0, n - 20), n) for n in world.lengths]


def worst(world: Paged, out: Any, selection: Selection | None, kv: str, ranges: Ranges, every: int) -> float:
    """Largest error of a row's heads over their norm."""
    errors = [
        np.linalg.norm(found - truth) / np.linalg.norm(truth)
        for found, truth in beside_truth(world, out, selection, kv, every, ranges)
    ]
    return float(np.max(errors))  # of what is not a number, that


def run(
    ops: OnArrays, world: Paged, kv: str, ranges: Ranges, *, sparse: bool
) -> tuple[Any, Selection | None]:
    layer, step, q = world.filled(RefOps(), kv), world.step(ranges), world.rows(world.q, ranges)
    selection = ops.select(q, layer, step) if sparse else None
    return ops.attend(q, layer, step, selection), selection


@pytest.mark.parametrize("kv", ["float32", "bf16"])
@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize(("base", "d", "group"), SHAPES)
def test_attention(ops: OnArrays, base: dict[str, Any], d: int, group: int, sparse: bool, kv: str) -> None:
    c = config(base, topk=2)
    world = Paged(21, c, [(12 if GPU else 5) * c.block_size + 3, 1], (2 * group, 2), d)
    ranges = rows_of(world)
    out, selection = run(ops, world, kv, ranges, sparse=sparse)
    assert worst(world, out, selection, kv, ranges, every=7) < (1e-5 if kv == "float32" else NORM)


CHOICES: list[tuple[dict[str, Any], tuple[int, int], int]] = [
    (SMALL, (2, 2), 16),
    ({**SMALL, "use_nope": True, "lse_approx": True, "init_blocks": 0}, (10, 2), 64),
    ({**SMALL, "kernel_size": 40, "topk": 4}, (7, 1), 80),
    ({**SMALL, "kernel_size": 4, "init_blocks": 2, "lse_approx": True}, (32, 1), 16),
    ({**SMALL, "topk": 1}, (2, 1), 16),  # nothing but fixed blocks
    ({**RELEASED, "block_size": 32, "lse_approx": True}, (4, 4), 128),
]


@pytest.mark.parametrize("kv", ["float32", "bf16"])
@pytest.mark.parametrize(("base", "heads", "d"), CHOICES)
def test_choice(ops: OnArrays, base: dict[str, Any], heads: tuple[int, int], d: int, kv: str) -> None:
    """As the paper chooses, but for scores that rounding cannot tell apart."""
    c = config(base)
    world = Paged(11, c, [9 * c.block_size + 5, 3], heads, d)
    layer, ranges = world.filled(RefOps(), kv), rows_of(world)
    selection = ops.select(world.rows(world.q, ranges), layer, world.step(ranges))
    group, row = world.hq // world.hkv, 0
    for q, k, n, (a, b) in zip(world.q, world.k, world.lengths, ranges, strict=True):
        keys, queries = rounded(k, kv), q
        if c.use_nope:
            keys = unrotated(keys, world.cos[:n], world.sin[:n])
            queries = unrotated(q, world.cos[:n], world.sin[:n])
        for p in {*range(a, b, 5), b - 1}:
            for h in range(world.hkv):
                scores = block_scores_truth(queries[p, h * group : (h + 1) * group], keys[:, h], p, c)
                count = int(selection.counts[row + p - a, h])
                chosen = selection.blocks[row + p - a, h]
                assert count == c.num_selected(p) and (chosen[count:] == -1).all()
                check_choice(chosen[:count], scores, p, c, 1e-5 if kv == "float32" else 1e-2)
        row += b - a


@pytest.mark.parametrize("kv", ["float32", "bf16"])
def test_pages_are_those_of_the_truth(ops: OnArrays, kv: str) -> None:
    """Keys, values and compressed keys, appended in pieces that end anywhere."""
    c = config(SMALL, lse_approx=True, use_nope=True)
    world = Paged(12, c, [100, 37], (4, 2), 16)
    found, truth = world.layer(kv), world.layer(kv)
    for a, b in ((0, 1), (1, 50), (50, 100)):
        ranges = [(a, b), (min(a, 37), min(b, 37))]
        world.append(ops, found, ranges)
        world.append(RefOps(), truth, ranges)
    for name in ("keys", "values"):
        if kv == "float32" or GPU:
            np.testing.assert_array_equal(getattr(found, name), getattr(truth, name))
    if kv == "float32":
        np.testing.assert_allclose(found.compressed, truth.compressed, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(found.coarse, truth.coarse, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("sparse", [False, True])
def test_a_few_rows_of_a_long_context(ops: OnArrays, sparse: bool) -> None:
    """Decoding splits one row's pages among programs; some rows of a sparse step read everything."""
    length = 16 * 60
    world = Paged(25, config(SMALL, topk=30, dense_len=length + 3), [length + 6, 40], (4, 2), 16)
    layer, rows = world.filled(RefOps()), [(length, length + 6), (39, 40)]
    step, q = world.step(rows), world.rows(world.q, rows)
    selection = ops.select(q, layer, step) if sparse else None
    if selection is not None:
        assert (selection.counts[[0, 1, 6]] == -1).all() and (selection.counts[2:6] > 0).all()
    out = ops.attend(q, layer, step, selection)
    for found, truth in beside_truth(world, out, selection, "float32", 1, rows):
        np.testing.assert_allclose(found, truth, rtol=1e-4, atol=2e-6)


@pytest.mark.parametrize("sparse", [False, True])
def test_tokens_behind_a_row_never_leak(ops: OnArrays, sparse: bool) -> None:
    world, ranges = Paged(26, config(SMALL), [70], (6, 2), 16), [(40, 70)]
    clean, _ = run(ops, world, "bf16", ranges, sparse=sparse)
    world.k[0][51], world.v[0][53], world.v[0][60] = np.nan, np.nan, np.inf
    with np.errstate(invalid="ignore"):
        dirty, _ = run(ops, world, "bf16", ranges, sparse=sparse)
    np.testing.assert_allclose(dirty[:11], clean[:11], rtol=1e-5, atol=1e-6)
    assert np.isnan(dirty[13:15]).all()


def test_ties_go_to_the_lower_block(ops: OnArrays) -> None:
    c = config(SMALL, topk=4)
    world = Paged(13, c, [16 * 12], (4, 2), 16)
    world.k[0][:] = world.k[0][:1]
    layer, rows = world.filled(RefOps(), "bf16"), [(16 * 12 - 2, 16 * 12)]
    selection = ops.select(world.rows(world.q, rows), layer, world.step(rows))
    assert selection.blocks[-1, 0].tolist() == [0, 1, 2, 3, 10, 11]


def test_large_scores(ops: OnArrays) -> None:
    world = Paged(27, config(SMALL), [60], (2, 1), 16)
    world.q[0] *= 1e3
    world.k[0] *= 1e2
    out, _ = run(ops, world, "float32", [(0, 60)], sparse=False)
    assert worst(world, out, None, "float32", [(0, 60)], every=9) < 1e-4


def test_no_rows(ops: OnArrays) -> None:
    world = Paged(28, config(SMALL), [20, 20], (2, 1), 16)
    ranges = [(0, 0), (5, 5)]
    q, step, layer = world.rows(world.q, ranges), world.step(ranges), world.filled(RefOps())
    assert ops.attend(q, layer, step, ops.select(q, layer, step)).shape == (0, 32)


def test_pages_of_8_bits_are_refused(ops: OnArrays) -> None:
    world = Paged(29, config(SMALL), [20], (2, 1), 16)
    with pytest.raises(UnsupportedError, match="pages of int8"):
        world.filled(ops, "int8")
