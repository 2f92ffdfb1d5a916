"""attend over bf16 and int8 pages of 64 tokens: weights may be rounded to 16 bits, scores may not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from minicpm4.formats.bf16 import f32_to_bf16
from minicpm4.kernels.contract import OpTable
from tests.contract.paged import RELEASED, Paged, as_mask, attention_truth, chunks, config, rounded


def world_of(seed: int, length: int, heads: tuple[int, int] = (8, 2), d: int = 64, **changes: Any) -> Paged:
    return Paged(seed, config(RELEASED, **changes), [length], heads, d)


def attend_rows(
    ops: OpTable, world: Paged, begin: int, end: int, kv: str = "bf16", *, sparse: bool = False
) -> tuple[Any, Any]:
    rows = [(begin, end)]
    layer, step, q = world.filled(ops, kv), world.step(rows), world.rows(world.q, rows)
    selection = ops.select(q, layer, step) if sparse else None
    return ops.attend(q, layer, step, selection), selection


def gap(
    world: Paged, out: Any, begin: int, selection: Any, every: int = 1, kv: str = "bf16"
) -> tuple[float, float]:
    """Error of out's rows against the truth on rounded keys and values: of the norm, and the largest."""
    k, v = rounded(world.k[0], kv), rounded(world.v[0], kv)
    rows = range(0, len(out), every)
    masks = [None if selection is None else as_mask(selection, r, (begin + r) // 64 + 1) for r in rows]
    truth = np.stack(
        [
            attention_truth(world.q[0][begin + r], k, v, begin + r, m, 64)
            for r, m in zip(rows, masks, strict=True)
        ]
    )
    wrong = out[::every].reshape(truth.shape) - truth
    return float(np.linalg.norm(wrong) / np.linalg.norm(truth)), float(abs(wrong).max() / abs(truth).max())


@pytest.mark.parametrize("kv", ["bf16", "int8"])
@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("scale", [0.5, 3.0, 20.0])
@pytest.mark.parametrize(("d", "heads"), [(16, (3, 1)), (64, (16, 2)), (80, (5, 1)), (128, (8, 2))])
def test_error_stays_small_however_large_the_scores(
    ops: OpTable, d: int, heads: tuple[int, int], scale: float, sparse: bool, kv: str
) -> None:
    world = world_of(31, 500, heads, d)
    world.q[0] *= scale
    out, selection = attend_rows(ops, world, 300, 500, kv, sparse=sparse)
    norm, largest = gap(world, out, 300, selection, every=23, kv=kv)
    assert norm < 2e-3 and largest < 4e-3


@pytest.mark.parametrize("kv", ["bf16", "int8"])
def test_channels_of_very_different_size(ops: OpTable, kv: str) -> None:
    """Keys of real models have a few channels far above the others."""
    world = world_of(32, 400)
    world.k[0][..., 3] += 40
    world.k[0][..., 10] *= 30
    world.q[0][..., 10] /= 10
    out, _ = attend_rows(ops, world, 200, 400, kv)
    norm, largest = gap(world, out, 200, None, every=9, kv=kv)
    assert norm < 2e-3 and largest < 4e-3


@pytest.mark.parametrize("kv", ["bf16", "int8"])
@pytest.mark.parametrize("size", [1, 3, 64, 100])
def test_chunks_agree(ops: OpTable, size: int, kv: str) -> None:
    world = world_of(33, 330)
    whole, _ = attend_rows(ops, world, 0, 330, kv)
    for a, b in chunks(330, size)[-9:]:
        part, _ = attend_rows(ops, world, a, b, kv)
        np.testing.assert_array_equal(part, whole[a:b])


@pytest.mark.parametrize(
    ("key", "query"), [(0.0, 1.0), (1e-25, 1.0), (1e19, 1e-19), (1.0, 0.0), (1e-20, 1e20)]
)
def test_sizes_beyond_those_of_integers(ops: OpTable, key: float, query: float) -> None:
    world = world_of(34, 200)
    world.k[0] *= np.float32(key)
    world.q[0] *= np.float32(query)
    out, _ = attend_rows(ops, world, 150, 200)
    assert gap(world, out, 150, None, every=7)[0] < 2e-3


@pytest.mark.parametrize("kv", ["bf16", "int8"])
def test_a_large_query_leaves_the_others_alone(ops: OpTable, kv: str) -> None:
    world = world_of(35, 200)
    clean, _ = attend_rows(ops, world, 150, 200, kv)
    world.q[0][170] = np.nan
    world.q[0][180] *= 1e14
    dirty, _ = attend_rows(ops, world, 150, 200, kv)
    others = [r for r in range(50) if r not in (20, 30)]
    np.testing.assert_allclose(dirty[others], clean[others], rtol=1e-5, atol=1e-6)
    assert np.isnan(dirty[20]).all() and np.isfinite(dirty[30]).all()


def test_what_is_not_finite_reaches_only_rows_that_see_it(ops: OpTable) -> None:
    world = world_of(36, 300)
    clean, _ = attend_rows(ops, world, 0, 300)
    for place, value in ((150, np.nan), (210, np.inf)):
        world.k[0][place, 0, 5] = value
        world.v[0][place + 1, 1, 7] = value
    assert f32_to_bf16(world.k[0])[150, 0, 5] & 0x7F80 == 0x7F80
    dirty, _ = attend_rows(ops, world, 0, 300)
    np.testing.assert_allclose(dirty[:150], clean[:150], rtol=1e-4, atol=2e-6)
    assert np.isnan(dirty[150:].reshape(-1, 8, 64)[:, :4]).all()
    assert np.isnan(dirty[151:].reshape(-1, 8, 64)[:, 4:, 7]).all()
    np.testing.assert_allclose(
        dirty[:, 4 * 64 : 4 * 64 + 7], clean[:, 4 * 64 : 4 * 64 + 7], rtol=1e-4, atol=2e-6
    )


@pytest.mark.parametrize("rows", [1, 40])
def test_int8_scales_behind_a_row_are_not_read(ops: OpTable, rows: int) -> None:
    """Pages are used again: behind a row may lie anything."""
    world = world_of(37, 200)
    layer = world.filled(ops, "int8")
    ranges = [(170 - rows, 170)]
    step, q = world.step(ranges), world.rows(world.q, ranges)
    clean = ops.attend(q, layer, step, None)
    page = world.tables[0, 170 // 64]
    for scales, value in ((layer.key_scales, np.nan), (layer.value_scales, np.inf)):
        assert scales is not None
        scales[page, :, 170 % 64 :] = value
    np.testing.assert_array_equal(ops.attend(q, layer, step, None), clean)
    assert gap(world, clean, 170 - rows, None, kv="int8")[0] < 2e-3


def test_int8_numbers_that_are_not_finite_reach_only_rows_that_see_them(ops: OpTable) -> None:
    world = world_of(38, 300)
    clean, _ = attend_rows(ops, world, 0, 300, "int8")
    world.k[0][150, 0, 5], world.v[0][170, 1, 7] = np.nan, np.inf
    dirty, _ = attend_rows(ops, world, 0, 300, "int8")
    np.testing.assert_allclose(dirty[:150], clean[:150], rtol=1e-3, atol=1e-4)
    assert np.isnan(dirty[150:].reshape(-1, 8, 64)[:, :4]).all()
    second = slice(4 * 64, None)
    np.testing.assert_allclose(dirty[:170, second], clean[:170, second], rtol=1e-3, atol=1e-4)
    assert np.isnan(dirty[170:, second]).all()


@pytest.mark.parametrize("rows", [1, 40])
def test_bf16_tokens_behind_a_row_are_not_read(ops: OpTable, rows: int) -> None:
    world = world_of(39, 200)
    layer = world.filled(ops, "bf16")
    ranges = [(170 - rows, 170)]
    step, q = world.step(ranges), world.rows(world.q, ranges)
    page = world.tables[0, 170 // 64]
    layer.keys[page, :, :, 170 % 64 :], layer.values[page, :, 170 % 64 :] = 0, 0
    clean = ops.attend(q, layer, step, None)
    layer.keys[page, :, :, 170 % 64 :], layer.values[page, :, 170 % 64 :] = 0x7FC0, 0x7F80
    np.testing.assert_array_equal(ops.attend(q, layer, step, None), clean)
    assert gap(world, clean, 170 - rows, None)[0] < 2e-3


def test_values_that_are_not_finite_one_after_another(ops: OpTable) -> None:
    """Each row sees those before it, and no other, in the one page that all rows read in part."""
    world = world_of(40, 64)
    clean, _ = attend_rows(ops, world, 0, 64)
    for place in (20, 21, 40, 63):
        world.v[0][place, 0, place % 8] = np.inf
    dirty, _ = attend_rows(ops, world, 0, 64)
    seen = np.isfinite(dirty.reshape(64, 8, 64))
    for place in (20, 21, 40, 63):
        assert seen[:place, :, place % 8].all()
        assert not seen[place:, :4, place % 8].any()
    np.testing.assert_array_equal(dirty[:, 9:256:64], clean[:, 9:256:64])
    np.testing.assert_array_equal(dirty[:, 256:], clean[:, 256:])
