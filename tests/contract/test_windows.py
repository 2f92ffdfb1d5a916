"""Layers with a sliding window: a row reads the last tokens up to its own, and nothing before them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from minicpm4.kernels.contract import OpTable
from tests.contract.paged import RELEASED, SMALL, Paged, attention_truth, config, rounded
from tests.contract.trees import Forest
from tests.levels import PAIRS, level

WINDOWS = [5, 64, 130]
DRAFTS = [(SMALL, "float32"), (RELEASED, "bf16"), (RELEASED, "int8")]


def tolerance(ops: OpTable, kv: str, base: dict[str, Any]) -> float:
    """Relative; levels of PAIRS round weights to bf16 where they read whole pages of 64 by dot products."""
    return 2.5e-3 if kv != "float32" and level(ops) in PAIRS and base["block_size"] == 64 else 2e-5


def close(found: Any, truth: Any, within: float) -> bool:
    return bool(np.linalg.norm(found - truth) <= within * np.linalg.norm(truth))


@pytest.mark.parametrize("kv", ["float32", "bf16", "int8"])
@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize(("base", "d", "group"), [(SMALL, 16, 3), (RELEASED, 64, 8)])
def test_matches_the_truth(
    any_ops: OpTable, base: dict[str, Any], d: int, group: int, window: int, kv: str
) -> None:
    world = Paged(window, config(base), [4 * base["block_size"] + 3, 1, 150], (2 * group, 2), d)
    layer = replace(world.filled(any_ops, kv), window=window)
    q, step = world.rows(world.q), world.step()
    out = any_ops.attend(q, layer, step, None)
    np.testing.assert_array_equal(any_ops.attention(q, layer, step), out)  # sparse steps choose nothing here
    row, size = 0, base["block_size"]
    for s, n in enumerate(world.lengths):
        keys, values = rounded(world.k[s], kv), rounded(world.v[s], kv)
        for p in {*range(0, n, 13), *range(max(0, window - 2), min(n, window + 2)), n - 1}:
            low = max(0, p + 1 - window)
            truth = attention_truth(world.q[s][p], keys[low:], values[low:], p - low, None, size)
            assert close(out[row + p].reshape(truth.shape), truth, tolerance(any_ops, kv, base)), (s, p)
        row += n


@pytest.mark.parametrize("kv", ["float32", "bf16", "int8"])
@pytest.mark.parametrize("window", WINDOWS)
def test_a_row_reads_the_same_whatever_is_beside_it(ops: OpTable, window: int, kv: str) -> None:
    world = Paged(5, config(RELEASED), [200, 70], (8, 2), 64)
    layer = replace(world.filled(ops, kv), window=window)
    whole = ops.attend(world.rows(world.q), layer, world.step(), None)
    for p in (0, 3, 62, 63, 64, 65, 127, 128, 199):
        alone = [(p, p + 1), (0, 0)]
        out = ops.attend(world.rows(world.q, alone), layer, world.step(alone), None)
        np.testing.assert_array_equal(out[0], whole[p])


@pytest.mark.parametrize("kv", ["float32", "bf16", "int8"])
@pytest.mark.parametrize("window", [1, 100])
def test_nothing_before_the_window_reaches_a_result(any_ops: OpTable, window: int, kv: str) -> None:
    """Not even as 0 times what is not a number: tokens before it were never written."""
    world = Paged(6, config(RELEASED), [190, 64], (4, 2), 64)
    layer, last = replace(world.layer(kv), window=window), [(n - 1, n) for n in world.lengths]
    world.append(any_ops, layer, [(max(0, n - window), n) for n in world.lengths])
    out = any_ops.attend(world.rows(world.q, last), layer, world.step(last), None)
    for s, n in enumerate(world.lengths):
        low = max(0, n - window)
        keys, values = rounded(world.k[s][low:], kv), rounded(world.v[s][low:], kv)
        truth = attention_truth(world.q[s][n - 1], keys, values, n - 1 - low, None, 64)
        assert close(out[s].reshape(truth.shape), truth, tolerance(any_ops, kv, RELEASED))


@pytest.mark.parametrize("window", [3, 64, 200])
@pytest.mark.parametrize(("base", "kv"), DRAFTS)
def test_windows_of_drafts_are_counted_along_their_texts(
    any_ops: OpTable, base: dict[str, Any], window: int, kv: str
) -> None:
    forest = Forest(config(base), (4, 2), 64)
    world = forest.world
    layer = replace(forest.layer(any_ops, kv), window=window)
    out = any_ops.attend(forest.q, layer, forest.step, None)
    for row, (s, node, text) in enumerate(forest.texts()):
        reads = text[-window:]
        keys, values = rounded(world.k[s][reads], kv), rounded(world.v[s][reads], kv)
        truth = attention_truth(world.q[s][text[-1]], keys, values, len(reads) - 1, None, base["block_size"])
        assert close(out[row].reshape(truth.shape), truth, tolerance(any_ops, kv, base)), (s, node)
