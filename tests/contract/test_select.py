"""select: InfLLM v2 steps 2 to 4 against a brute-force float64 truth."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from minicpm4.kernels.contract import OpTable
from minicpm4.kernels.ref import RefOps
from minicpm4.kernels.step import Selection
from tests.contract.paged import (
    RELEASED,
    SMALL,
    Paged,
    block_scores_truth,
    check_choice,
    chunks,
    config,
    rounded,
    unrotated,
)

CASES: list[tuple[dict[str, Any], tuple[int, int], int]] = [
    ({**SMALL}, (2, 2), 16),
    ({**SMALL, "lse_approx": True}, (6, 2), 16),
    ({**SMALL, "use_nope": True}, (3, 1), 16),
    ({**SMALL, "use_nope": True, "lse_approx": True, "init_blocks": 0}, (10, 2), 64),
    ({**SMALL, "kernel_size": 40, "topk": 4}, (7, 1), 80),
    ({**SMALL, "kernel_size": 4, "init_blocks": 2}, (32, 1), 16),
    ({**RELEASED}, (16, 1), 64),
    ({**RELEASED, "lse_approx": True}, (32, 2), 64),
    ({**RELEASED, "block_size": 128, "topk": 2, "window_size": 256, "lse_approx": True}, (5, 1), 128),
    ({**RELEASED, "block_size": 32, "lse_approx": True}, (4, 4), 128),
    ({**SMALL, "topk": 1}, (2, 1), 16),  # nothing but fixed blocks
]


@pytest.mark.parametrize("kv", ["float32", "bf16", "int8"])
@pytest.mark.parametrize(("case", "heads", "d"), CASES)
def test_choice_follows_the_paper(
    ops: OpTable, case: dict[str, Any], heads: tuple[int, int], d: int, kv: str
) -> None:
    c = config(case)
    world = Paged(11, c, [12 * c.block_size + 5, 3, 4 * c.block_size], heads, d)
    layer = world.filled(ops, kv)
    selection = ops.select(world.rows(world.q), layer, world.step())
    check_rows(world, selection, kv, every=7)


@pytest.mark.parametrize("kv", ["float32", "int8"])
@pytest.mark.parametrize(("case", "heads", "d"), CASES)
def test_numpy_follows_the_paper(case: dict[str, Any], heads: tuple[int, int], d: int, kv: str) -> None:
    c = config(case)
    world = Paged(10, c, [8 * c.block_size + 5, 3, 4 * c.block_size], heads, d)
    selection = RefOps().select(world.rows(world.q), world.filled(RefOps(), kv), world.step())
    check_rows(world, selection, kv, every=17)


def check_rows(world: Paged, selection: Selection, kv: str, every: int) -> None:
    """Check every so many rows of the whole step, and the last of each sequence.

    Compressed keys of 16 bits, and queries, err by up to half a step of 1/32766 of the norm in each number.
    """
    tolerance = 1e-5 if kv == "float32" else 5e-4
    c, group, row = world.sparse, world.hq // world.hkv, 0
    for q, k, n in zip(world.q, world.k, world.lengths, strict=True):
        keys: Any = rounded(k, kv)
        queries: Any = q
        if c.use_nope:
            keys = unrotated(keys, world.cos[:n], world.sin[:n])
            queries = unrotated(q, world.cos[:n], world.sin[:n])
        for p in range(n):
            if p % every and p != n - 1:
                continue
            for h in range(world.hkv):
                scores = block_scores_truth(queries[p, h * group : (h + 1) * group], keys[:, h], p, c)
                count = int(selection.counts[row + p, h])
                assert count == c.num_selected(p)
                chosen = selection.blocks[row + p, h]
                assert (chosen[count:] == -1).all()
                check_choice(chosen[:count], scores, p, c, tolerance)
        row += n


@pytest.mark.parametrize("group", range(1, 17))
def test_every_group_size(ops: OpTable, group: int) -> None:
    world = Paged(group, config(SMALL, lse_approx=group % 2 == 0), [130, 90], (2 * group, 2), 16)
    layer = world.filled(ops, "bf16")
    check_rows(world, ops.select(world.rows(world.q), layer, world.step()), "bf16", every=5)


@pytest.mark.parametrize("kv", ["float32", "bf16"])
@pytest.mark.parametrize("lse_approx", [False, True])
def test_chunks_choose_the_same(ops: OpTable, lse_approx: bool, kv: str) -> None:
    world = Paged(12, config(SMALL, lse_approx=lse_approx), [333, 200], (6, 2), 16)
    layer = world.filled(ops, kv)
    whole = ops.select(world.rows(world.q), layer, world.step())
    for size in (1, 5, 64):
        for first, (a, b) in zip((0, 333), ((0, 333), (0, 200)), strict=True):
            for lo, hi in chunks(b - a, size)[-20:]:
                ranges = [(lo, hi), (0, 0)] if first == 0 else [(0, 0), (lo, hi)]
                part = ops.select(world.rows(world.q, ranges), layer, world.step(ranges))
                np.testing.assert_array_equal(part.blocks, whole.blocks[first + lo : first + hi])
                np.testing.assert_array_equal(part.counts, whole.counts[first + lo : first + hi])


@pytest.mark.parametrize("kv", ["float32", "bf16"])
def test_ties_go_to_the_lower_block(ops: OpTable, kv: str) -> None:
    c = config(SMALL, topk=4)
    world = Paged(13, c, [16 * 20], (4, 2), 16)
    world.k[0][:] = world.k[0][:1]
    selection = ops.select(world.rows(world.q), world.filled(ops, kv), world.step())
    assert selection.blocks[-1, 0].tolist() == [0, 1, 2, 3, 18, 19]


def test_dense_rows_are_marked(ops: OpTable) -> None:
    world = Paged(14, config(SMALL, dense_len=100), [160], (2, 1), 16)
    selection = ops.select(world.rows(world.q), world.filled(ops), world.step())
    assert (selection.counts[:99] == -1).all() and (selection.blocks[:99] == -1).all()
    assert (selection.counts[99:] > 0).all()


def test_what_is_behind_a_row_does_not_matter(ops: OpTable) -> None:
    world = Paged(15, config(SMALL, lse_approx=True), [200], (4, 2), 16)
    full, cut = world.filled(ops), world.layer()
    world.append(ops, cut, [(0, 150)])
    rows = [(120, 150)]
    first = ops.select(world.rows(world.q, rows), full, world.step(rows))
    second = ops.select(world.rows(world.q, rows), cut, world.step(rows))
    np.testing.assert_array_equal(first.blocks, second.blocks)


@pytest.mark.parametrize("kv", ["float32", "bf16"])
@pytest.mark.parametrize(("lse_approx", "shift"), [(False, 250), (False, -250), (True, -60), (True, 60)])
def test_scores_far_from_zero(ops: OpTable, lse_approx: bool, shift: float, kv: str) -> None:
    """A number that all keys share moves all scores of a row, beyond what powers alone could hold."""
    c = config(SMALL, topk=6, lse_approx=lse_approx)
    world = Paged(21, c, [16 * 150], (18, 2), 32)
    world.k[0][..., 0] = 16
    world.q[0][..., 0] = shift * np.sqrt(32) / 16
    layer, rows = world.filled(ops, kv), [(16 * 150 - 5, 16 * 150)]
    selection = ops.select(world.rows(world.q, rows), layer, world.step(rows))
    keys = rounded(world.k[0], kv)
    for row, p in enumerate(range(*rows[0])):
        alone = ops.select(world.q[0][p : p + 1], layer, world.step([(p, p + 1)]))
        np.testing.assert_array_equal(alone.blocks[0], selection.blocks[row])
        for h in range(2):
            scores = block_scores_truth(world.q[0][p, 9 * h : 9 * h + 9], keys[:, h], p, c)
            check_choice(selection.blocks[row, h], scores, p, c, 2e-2)


@pytest.mark.parametrize("kv", ["float32", "bf16"])
def test_no_compressed_key_is_visible_yet(ops: OpTable, kv: str) -> None:
    world = Paged(22, config(SMALL, kernel_size=128), [16 * 7], (2, 1), 16)
    layer = world.filled(ops, kv)
    for rows in ([(100, 112)], [(111, 112)]):
        selection = ops.select(world.rows(world.q, rows), layer, world.step(rows))
        assert selection.blocks[-1, 0].tolist() == [0, 1, 2, 5, 6]


@pytest.mark.parametrize("kv", ["float32", "bf16"])
@pytest.mark.parametrize("lse_approx", [False, True])
def test_long_context_recomputes_scores(ops: OpTable, lse_approx: bool, kv: str) -> None:
    """32 heads over 16384 compressed keys: more scores than a tile may keep; alone, threads share a row."""
    c = config(SMALL, kernel_size=2, kernel_stride=1, window_size=16, topk=5, lse_approx=lse_approx)
    world = Paged(16, c, [16 * 1024], (32, 1), 2)
    layer = world.filled(ops, kv)
    rows = [(16 * 1024 - 5, 16 * 1024)]
    together = ops.select(world.rows(world.q, rows), layer, world.step(rows))
    alone = [
        ops.select(world.rows(world.q, [(p, p + 1)]), layer, world.step([(p, p + 1)])).blocks[0]
        for p in range(*rows[0])
    ]
    np.testing.assert_array_equal(together.blocks, np.stack(alone))


@pytest.mark.parametrize("kv", ["float32", "bf16"])
@pytest.mark.parametrize("lse_approx", [False, True])
def test_sequences_decoded_together_choose_as_alone(ops: OpTable, lse_approx: bool, kv: str) -> None:
    c = config(SMALL, dense_len=90, lse_approx=lse_approx)
    lengths = [1200, 3, 89, 700, 90]
    world = Paged(19, c, lengths, (6, 2), 16)
    layer = world.filled(ops, kv)
    ends = [(n - 1, n) for n in lengths]
    ends[3] = (700, 700)  # a sequence without a row in this step
    together = ops.select(world.rows(world.q, ends), layer, world.step(ends))
    whole = ops.select(world.rows(world.q), layer, world.step())
    rows = [sum(lengths[: i + 1]) - 1 for i in (0, 1, 2, 4)]
    np.testing.assert_array_equal(together.blocks, whole.blocks[rows])
    np.testing.assert_array_equal(together.counts, whole.counts[rows])


@pytest.mark.parametrize("kv", ["float32", "bf16"])
def test_not_finite_scores_still_choose_real_blocks(ops: OpTable, kv: str) -> None:
    world = Paged(17, config(SMALL), [16 * 12], (2, 1), 16)
    world.k[0][40:60] = np.nan
    world.q[0][-1] = np.inf
    with np.errstate(invalid="ignore", over="ignore"):
        selection = ops.select(world.rows(world.q), world.filled(ops, kv), world.step())
    chosen = selection.blocks[-1, 0, : selection.counts[-1, 0]]
    assert len(set(chosen.tolist())) == world.sparse.budget and chosen.max() == 11


def test_budget_that_covers_everything_chooses_everything(ops: OpTable) -> None:
    world = Paged(18, config(SMALL, topk=20), [16 * 9 + 2], (2, 2), 16)
    layer = replace(world.layer(), compressed=np.full_like(world.layer().compressed, np.nan))
    selection = ops.select(world.rows(world.q), layer, world.step())
    assert selection.blocks[-1, 0, :10].tolist() == list(range(10))
    assert selection.counts[-1].tolist() == [10, 10]


@pytest.mark.parametrize("kv", ["float32", "bf16"])
@pytest.mark.parametrize("together", [1, 7])
def test_many_blocks_and_equal_scores(ops: OpTable, together: int, kv: str) -> None:
    """More candidates than are kept while choosing, half of them equal: the lower blocks win."""
    c = config(SMALL, topk=9, kernel_size=4)
    world = Paged(40, c, [16 * 400], (4, 2), 16)
    for b in range(0, 400, 2):
        world.k[0][16 * b : 16 * b + 16] = world.k[0][:16]
    layer, rows = world.filled(ops, kv), [(16 * 400 - together, 16 * 400)]
    selection = ops.select(world.rows(world.q, rows), layer, world.step(rows))
    keys = rounded(world.k[0], kv)
    for row in range(together):
        p = rows[0][0] + row
        for h in range(2):
            scores = block_scores_truth(world.q[0][p, 2 * h : 2 * h + 2], keys[:, h], p, c)
            chosen = selection.blocks[row, h].tolist()
            equal = [b for b in chosen[:9] if b % 2 == 0]
            assert equal == list(range(0, 2 * len(equal), 2))
            check_choice(selection.blocks[row, h], scores, p, c, 5e-4)
