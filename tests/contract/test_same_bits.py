"""Attention, the choice of blocks and pages have the same bits however rows are cut: alone, in chunks, beside
strangers, as drafts, with any number of threads."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from minicpm4.kernels.contract import OpTable
from minicpm4.kernels.cpu import CpuOps, emulated_levels, isa_levels
from minicpm4.kernels.ref import RefOps
from minicpm4.kernels.step import Array, KVLayer
from tests.contract.paged import RELEASED, SMALL, Paged, config
from tests.contract.trees import Forest, path, random_parents, stored

LEVELS = [*isa_levels(), *emulated_levels()]
KV = ["float32", "bf16", "int8"]
# Heads (all, of keys) and their size; SMALL has pages that no level takes by dot products.
SHAPES: dict[str, tuple[dict[str, Any], tuple[int, int], int]] = {
    "64, 4 to a group": (RELEASED, (8, 2), 64),
    "64, 16 to a group": ({**RELEASED, "lse_approx": True}, (16, 1), 64),
    "96, 3 to a group": ({**RELEASED, "use_nope": True}, (3, 1), 96),
    "128, alone": ({**RELEASED, "lse_approx": True, "init_blocks": 0}, (2, 2), 128),
    "80, 5 to a group": (RELEASED, (5, 1), 80),
    "16, small pages": ({**SMALL, "lse_approx": True}, (6, 2), 16),
    "24, small pages": ({**SMALL, "use_nope": True, "kernel_size": 40}, (3, 3), 24),
}
PARTS = ("counts", "blocks", "sparse", "dense")
Found = dict[tuple[int, int], tuple[bytes, ...]]  # of each sequence and position these, as bytes
LONG = (5000, 2113, 300)


def tables(level: str) -> list[OpTable]:
    """The level with one thread, and with more."""
    if level == "ref":
        return [RefOps()]
    return [CpuOps(threads, level) for threads in (1, 2, 5)]


@lru_cache(maxsize=16)
def world_of(shape: str, lengths: tuple[int, ...]) -> Paged:
    base, heads, d = SHAPES[shape]
    return Paged(17, config(base), lengths, heads, d)


def read(ops: OpTable, world: Paged, layer: KVLayer, ranges: Sequence[tuple[int, int]]) -> Found:
    """What rows of tokens [start, stop) of each sequence choose and read: among chosen blocks, and dense."""
    step, q = world.step(ranges), world.rows(world.q, ranges)
    chosen = ops.select(q, layer, step)
    sparse, dense = (ops.attend(q, layer, step, None if layer.window else each) for each in (chosen, None))
    rows = [(s, p) for s, (a, b) in enumerate(ranges) for p in range(a, b)]
    arrays = (chosen.counts, chosen.blocks, sparse, dense)
    return {row: tuple(np.ascontiguousarray(x[i]).tobytes() for x in arrays) for i, row in enumerate(rows)}


def alone(ops: OpTable, world: Paged, layer: KVLayer, s: int, p: int) -> Found:
    return read(ops, world, layer, [(p, p + 1) if j == s else (0, 0) for j in range(len(world.lengths))])


def check(found: Found, wanted: Found) -> None:
    different = [row for row in wanted if found[row] != wanted[row]]
    parts = {
        name for row in different for name, a, b in zip(PARTS, found[row], wanted[row], strict=True) if a != b
    }
    assert not different, f"{len(different)} of {len(wanted)} rows differ in {parts}: {different[:5]}"


def cut(length: int, sizes: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Pieces of ``sizes``, again and again, up to ``length``; then empty ones."""
    start, number = 0, 0
    while True:
        stop = min(length, start + sizes[number % len(sizes)])
        yield start, stop
        start, number = stop, number + 1


def steps(lengths: Sequence[int], sizes: Sequence[Sequence[int]]) -> Iterator[list[tuple[int, int]]]:
    """Ranges of each sequence, step by step, until all are at their ends."""
    pieces = [cut(n, own) for n, own in zip(lengths, sizes, strict=True)]
    ranges = [next(piece) for piece in pieces]
    while any(a < b for a, b in ranges):
        yield ranges
        ranges = [next(piece) for piece in pieces]


def run(ops: OpTable, world: Paged, kv: str, sizes: Sequence[Sequence[int]]) -> tuple[Found, KVLayer]:
    """All tokens of all sequences, written and read in such pieces."""
    found: Found = {}
    layer = world.layer(kv)
    for ranges in steps(world.lengths, sizes):
        world.append(ops, layer, ranges)
        found |= read(ops, world, layer, ranges)
    return found, layer


def bits_of(layer: KVLayer) -> dict[str, bytes]:
    return {name: array.tobytes() for name, array in stored(layer).items()}


@lru_cache(maxsize=4)
def token_by_token(
    level: str, shape: str, lengths: tuple[int, ...], kv: str
) -> tuple[Found, dict[str, bytes]]:
    """One sequence after another, one token at a time, by one thread."""
    world, ops = world_of(shape, lengths), tables(level)[0]
    layer, found = world.layer(kv), {}
    for s, n in enumerate(lengths):
        for p in range(n):
            ranges = [(p, p + 1) if j == s else (0, 0) for j in range(len(lengths))]
            world.append(ops, layer, ranges)
            found |= read(ops, world, layer, ranges)
    return found, bits_of(layer)


SIZES = st.lists(st.sampled_from([1, 2, 3, 7, 15, 33, 64, 65, 130, 512]), min_size=1, max_size=4)


@pytest.mark.parametrize("kv", KV)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", ["ref", *LEVELS])
def test_pieces_and_strangers_change_no_bit(name: str, shape: str, kv: str) -> None:
    """Of results, chosen blocks, pages and compressed keys."""
    lengths = (330, 70, 129) if name != "ref" else (150, 40, 70)
    wanted, pages = token_by_token(name, shape, lengths, kv)

    @settings(max_examples=4, database=None)
    @given(sizes=st.tuples(SIZES, SIZES, SIZES))
    @example(sizes=([512], [512], [512]))
    @example(sizes=([64], [1], [7, 33]))
    def compare(sizes: tuple[list[int], ...]) -> None:
        for ops in tables(name):
            found, layer = run(ops, world_of(shape, lengths), kv, sizes)
            check(found, wanted)
            assert bits_of(layer) == pages

    compare()


@lru_cache(maxsize=8)
def long_pages(name: str, shape: str, kv: str) -> KVLayer:
    world = world_of(shape, LONG)
    return world.filled(tables(name)[0], kv)


@pytest.mark.parametrize("kv", KV)
@pytest.mark.parametrize("shape", ["64, 4 to a group", "128, alone", "96, 3 to a group", "16, small pages"])
@pytest.mark.parametrize("name", LEVELS)
def test_long_contexts(name: str, shape: str, kv: str) -> None:
    """Rows in the middle of what is written, with windows and without, against each of them alone."""
    world, ops = world_of(shape, LONG), tables(name)
    wanted: dict[int, Found] = {}

    @settings(max_examples=5, database=None)
    @given(st.data())
    def compare(data: st.DataObject) -> None:
        ends = [data.draw(st.integers(1, n)) for n in LONG]
        ranges = [(max(0, end - data.draw(st.sampled_from([0, 1, 2, 8, 9, 40, 100]))), end) for end in ends]
        window = data.draw(st.sampled_from([0, 0, 1, 64, 1000, 4500]))
        layer = replace(long_pages(name, shape, kv), window=window)
        rows = [(s, p) for s, (a, b) in enumerate(ranges) for p in {a, (a + b) // 2, b - 1} if a <= p < b]
        single = wanted.setdefault(window, {})
        for s, p in rows:
            if (s, p) not in single:
                single |= alone(ops[0], world, layer, s, p)
        for table in ops:
            check(read(table, world, layer, ranges), {row: single[row] for row in rows})

    compare()


@pytest.mark.parametrize("kv", KV)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", ["ref", *LEVELS])
def test_drafts_have_the_bits_of_their_paths(name: str, shape: str, kv: str) -> None:
    """Decoded one token at a time, after the same text."""
    base, heads, d = SHAPES[shape]
    trees = [random_parents(seed, count) for seed, count in ((8, 64), (9, 9), (10, 20))]
    c = config(base)
    starts = [9 * c.block_size - 5, 2 * c.block_size, 3]
    forest = Forest(c, heads, d, trees, starts)
    for ops in tables(name):
        layer = forest.layer(ops, kv)
        chosen = ops.select(forest.q, layer, forest.step)
        results = [ops.attend(forest.q, layer, forest.step, s) for s in (chosen, None)]
        found = (chosen.counts, chosen.blocks, *results)
        for row, (s, node, text) in enumerate(forest.texts()):
            if node % 6 and node != len(trees[s]) - 1:
                continue
            wanted = decoded(tables(name)[0], forest, kv, s, text)
            for one, other in zip(found, wanted, strict=True):
                assert one[row].tobytes() == other[0].tobytes(), (s, node, path(trees[s], node))


def decoded(ops: OpTable, forest: Forest, kv: str, s: int, text: Sequence[int]) -> tuple[Array, ...]:
    """What the last token of a text chooses and reads, the drafts on its path written one at a time."""
    world, starts = forest.world, forest.starts
    layer = world.layer(kv)
    world.append(RefOps(), layer, [(0, start) for start in starts])
    for at in range(starts[s], len(text)):
        step = world.step([(at, at + (j == s)) for j in range(len(starts))])
        k, v, q = (x[s][text[at] : text[at] + 1] for x in (world.k, world.v, world.q))
        ops.append(k, v, layer, step)
    chosen = ops.select(q, layer, step)
    return chosen.counts, chosen.blocks, *(ops.attend(q, layer, step, each) for each in (chosen, None))


@pytest.mark.parametrize("kv", KV)
@pytest.mark.parametrize("name", LEVELS)
def test_tokens_behind_a_row_that_are_not_finite(name: str, kv: str) -> None:
    """Whatever they are, rows before them keep their bits, beside rows that see them."""
    ops = tables(name)
    lengths = (150, 64)
    world = Paged(23, config(RELEASED), lengths, (8, 2), 64)
    layer = world.filled(ops[0], kv)
    wanted = read(ops[0], world, layer, [(0, n) for n in lengths])
    world.k[0][71, :, 3], world.v[0][100, 0], world.v[1][40, :, 5] = np.nan, np.inf, -np.inf
    layer = world.layer(kv)
    world.append(ops[0], layer, [(0, n) for n in lengths])
    for table in ops:
        found = read(table, world, layer, [(0, n) for n in lengths])
        check(found, {(s, p): bits for (s, p), bits in wanted.items() if p < (71, 40)[s]})
        for s, p in ((0, 71), (0, 80), (0, 100), (0, 149), (1, 40), (1, 63)):
            check(found, alone(ops[0], world, layer, s, p))
