"""What a call of the extension reads stays as it was checked, whatever other threads and outputs do."""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from minicpm4 import _cpu
from minicpm4.kernels import cpu
from minicpm4.kernels.cpu import CpuOps
from tests.contract.paged import SMALL, Paged, config
from tests.contract.test_layer import FEATURES, NO_BUFFERS, WIDTH, two_layers

LAYERS = 2000  # enough that a call goes on for a while


def test_a_step_is_the_one_that_was_checked(ops: CpuOps) -> None:
    """Its arrays lie where an op may write, such as another thread's, or its own output."""
    world = Paged(7, config(SMALL), [40], (4, 2), 16)
    x, step = np.random.default_rng(8).standard_normal((40, WIDTH), np.float32), world.step(sparse=False)
    first, second = (two_layers(ops, np.random.default_rng(9), world, "float32") for _ in range(2))
    expected = ops.layers(x.copy(), first, step, 0.7, NO_BUFFERS)
    for array in (step.page_table, step.positions, step.cu_rows):
        array[...] = 1 << 30
    np.testing.assert_array_equal(ops.layers(x.copy(), second, step, 0.7, NO_BUFFERS), expected)


def test_ids_that_lie_where_rows_are_written_are_those_that_were_checked(ops: CpuOps) -> None:
    table = np.full((8, 4), 7, np.int32).view(np.float32)
    table[3] = 2.5
    weight = _cpu.Weight("f32", "rows", 8, 4, 0, table, None, None)
    out = np.zeros((2, 4), np.float32)
    ids = out.view(np.int32)[0, :2]
    ids[:] = 0, 3  # of which the first row makes 7, 7
    ops._ctx.embed(ids, weight, 1.0, out)
    np.testing.assert_array_equal(out[1], 2.5)


def products(ops: CpuOps) -> tuple[list[Any], weakref.ref[Any], Callable[[list[Any]], None]]:
    codes = np.ones((2048, 512), np.float32)
    x, out = np.ones((8000, 512), np.float32), np.empty((8000, 2048), np.float32)
    listed = [(_cpu.Weight("f32", "rows", 2048, 512, 0, codes, None, None), None, out)]
    return listed, weakref.ref(codes), lambda given: ops._ctx.linears(x, given)


def whole_layers(ops: CpuOps) -> tuple[list[Any], weakref.ref[Any], Callable[[list[Any]], None]]:
    world = Paged(7, config(SMALL), [40], (4, 2), 16)
    first, second, pages = two_layers(ops, np.random.default_rng(9), world, "float32")[0]
    x, rows = np.ones((40, WIDTH), np.float32), cpu._rows(world.step(sparse=False))
    outs = [np.empty((40, size), np.float32) for size in (WIDTH, WIDTH, FEATURES)]
    one = (cpu._qkv(first), cpu._weight(first.o.weight), None, cpu._gate_up(second))
    listed = [(*one, cpu._weight(second.down.weight), None, cpu._pages(pages))] * LAYERS
    gone = weakref.ref(second.down.weight.codes)
    return listed, gone, lambda given: ops._ctx.layers(x, given, rows, 0.01, *outs)


@pytest.mark.parametrize("make", [products, whole_layers])
def test_weights_stay_while_a_call_reads_them(make: Any) -> None:
    """Though another thread empties the list that they were given in."""
    listed, codes, call = make(CpuOps(1))
    thread = threading.Thread(target=call, args=(listed,))
    thread.start()
    time.sleep(0.01)
    listed.clear()
    kept = codes() is not None
    assert kept or not thread.is_alive()
    thread.join()
    assert codes() is None
