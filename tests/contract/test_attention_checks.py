"""Arguments that would read or write outside their arrays are refused with ValueError."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from minicpm4.kernels.contract import OpTable
from minicpm4.kernels.step import KVLayer, Selection, Step
from tests.contract.paged import SMALL, Paged, config


@pytest.fixture
def world() -> Paged:
    return Paged(31, config(SMALL, lse_approx=True), [100, 50], (4, 2), 16)


def _table(step: Step, column: int, value: int) -> Step:
    table = step.page_table.copy()
    table[0, column] = value
    return replace(step, page_table=table)


def _positions(step: Step, row: int, value: int) -> Step:
    positions = step.positions.copy()
    positions[row] = value
    return replace(step, positions=positions)


BAD_STEPS = {
    "page id below 0": lambda s: _table(s, 2, -1),
    "page id too large": lambda s: _table(s, 0, 1 << 20),
    "page id huge": lambda s: _table(s, 6, np.iinfo(np.int32).max),
    "page missing": lambda s: replace(s, page_table=np.ascontiguousarray(s.page_table[:, :6])),
    "position below 0": lambda s: _positions(s, 0, -1),
    "position too large": lambda s: _positions(s, 99, 1 << 30),
    "positions with a gap": lambda s: _positions(s, 50, 52),
    "cu_rows does not start at 0": lambda s: replace(s, cu_rows=np.array([1, 100, 150], np.int32)),
    "cu_rows too short": lambda s: replace(s, cu_rows=np.array([0, 150], np.int32)),
    "cu_rows beyond the rows": lambda s: replace(s, cu_rows=np.array([0, 200, 150], np.int32)),
    "cu_rows not ascending": lambda s: replace(s, cu_rows=np.array([0, -5, 150], np.int32)),
}


@pytest.mark.parametrize("fault", BAD_STEPS)
def test_bad_steps(ops: OpTable, world: Paged, fault: str) -> None:
    layer, step, q = world.filled(ops), BAD_STEPS[fault](world.step()), world.rows(world.q)
    before = layer.keys.copy()
    with pytest.raises(ValueError, match=r"page_table|positions|cu_rows"):
        ops.append(world.rows(world.k), world.rows(world.v), layer, step)
    np.testing.assert_array_equal(before, layer.keys)
    with pytest.raises(ValueError, match=r"page_table|positions|cu_rows"):
        ops.select(q, layer, step)
    with pytest.raises(ValueError, match=r"page_table|positions|cu_rows"):
        ops.attend(q, layer, step, None)


BAD_SELECTIONS = {
    "block below 0": lambda b, c: b.__setitem__((60, 1, 0), -2),
    "block behind the row": lambda b, c: b.__setitem__((0, 0, 0), 1),
    "block huge": lambda b, c: b.__setitem__((99, 0, 1), np.iinfo(np.int32).max),
    "blocks not ascending": lambda b, c: b.__setitem__((99, 0, 1), 0),
    "count above the budget": lambda b, c: c.__setitem__((7, 1), b.shape[2] + 1),
    "count below -1": lambda b, c: c.__setitem__((7, 1), -2),
}


@pytest.mark.parametrize("fault", BAD_SELECTIONS)
def test_bad_selections(ops: OpTable, world: Paged, fault: str) -> None:
    layer, step, q = world.filled(ops), world.step(), world.rows(world.q)
    selection = ops.select(q, layer, step)
    BAD_SELECTIONS[fault](selection.blocks, selection.counts)
    with pytest.raises(ValueError, match=r"blocks|counts"):
        ops.attend(q, layer, step, selection)


def _layer(world: Paged, **changes: Any) -> KVLayer:
    return replace(world.layer(), **changes)


def test_pages_of_the_wrong_shape_or_type(ops: OpTable, world: Paged) -> None:
    k, v, step, pages = world.rows(world.k), world.rows(world.v), world.step(), world.num_pages
    bad = [
        _layer(world, values=np.zeros((pages, 2, 16, 8), np.float32)),
        _layer(world, values=np.zeros((pages, 2, 16, 16), np.uint16)),
        _layer(world, keys=np.zeros((pages, 2, 16, 16), np.float64)),
        _layer(world, keys=np.zeros((pages - 1, 2, 16, 16), np.float32)),
        _layer(world, keys=np.zeros((pages, 2, 32, 16), np.float32)[:, :, ::2]),
        _layer(world, compressed=np.zeros((pages, 2, 2, 16), np.float32)),
        _layer(world, compressed=np.zeros((pages - 1, 2, 4, 16), np.float32)),
        _layer(world, coarse=np.zeros((pages, 1, 1, 16), np.float32)),
    ]
    for layer in bad:
        with pytest.raises(ValueError, match=r"keys|values|compressed|coarse"):
            ops.append(k, v, layer, step)


def test_queries_of_the_wrong_shape(ops: OpTable, world: Paged) -> None:
    layer, step, q = world.filled(ops), world.step(), world.rows(world.q)
    for bad in (q[:-1], np.ascontiguousarray(q[:, :3]), np.ascontiguousarray(q[..., :8])):
        with pytest.raises(ValueError, match="q has"):
            ops.select(bad, layer, step)
        with pytest.raises(ValueError, match="q has"):
            ops.attend(bad, layer, step, None)
    with pytest.raises(ValueError, match="out has shape"):
        ops.attend(q, layer, step, None, np.zeros((3, 3), np.float32))


def test_rotary_table_too_short_for_use_nope(ops: OpTable) -> None:
    world = Paged(32, config(SMALL, use_nope=True), [100], (4, 2), 16)
    layer, step = world.filled(ops), world.step()
    step = replace(step, cos=step.cos[:99], sin=step.sin[:99])
    with pytest.raises(ValueError, match="rows of cos and sin"):
        ops.append(world.rows(world.k), world.rows(world.v), layer, step)
    with pytest.raises(ValueError, match="rows of cos and sin"):
        ops.select(world.rows(world.q), layer, step)


def test_approximation_without_coarse_keys(ops: OpTable, world: Paged) -> None:
    with pytest.raises(ValueError, match="lse_approx needs"):
        ops.select(world.rows(world.q), replace(world.filled(ops), coarse=None), world.step())


def test_block_size_that_pages_do_not_have(ops: OpTable, world: Paged) -> None:
    step = replace(world.step(), sparse=config(SMALL, block_size=32, lse_approx=True))
    with pytest.raises(ValueError, match="block_size = 32 for pages of 16"):
        ops.select(world.rows(world.q), world.filled(ops), step)


@pytest.mark.parametrize("shape", [(0, 2, 4, 512), (0, 512, 4, 16), (-1, 2, 4, 16), (0, 2, 3, 16)])
def test_compressed_keys_that_do_not_fit_the_keys(ops: OpTable, world: Paged, shape: tuple[int, ...]) -> None:
    """Of another head size, of more heads than keys have, or for fewer pages: they were read far outside."""
    layer = replace(
        world.filled(ops), compressed=np.zeros((world.num_pages + shape[0], *shape[1:]), np.float32)
    )
    with pytest.raises(ValueError, match="compressed has shape"):
        ops.select(world.rows(world.q), layer, world.step())


def test_selection_needs_both_arrays(ops: OpTable, world: Paged) -> None:
    layer, step, q = world.filled(ops), world.step(), world.rows(world.q)
    chosen = ops.select(q, layer, step)
    short = Selection(blocks=chosen.blocks[:-1], counts=chosen.counts)
    with pytest.raises(ValueError, match="blocks has shape"):
        ops.attend(q, layer, step, short)


@pytest.mark.parametrize("window", [-1, 1 << 40, (1 << 63) - 1])
def test_windows_that_cannot_be_computed_with(ops: OpTable, world: Paged, window: int) -> None:
    layer = replace(world.filled(ops), window=window)
    with pytest.raises(ValueError, match=rf"window = {window}, outside 0 to"):
        ops.attend(world.rows(world.q), layer, world.step(), None)
