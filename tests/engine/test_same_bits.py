"""What a model computes for a token has the same bits in any step: alone, in chunks, beside other sequences,
as a draft, with any number of threads; at levels whose products have one order of additions."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from minicpm4.config import SparseConfig
from minicpm4.engine.executors import Executor
from minicpm4.engine.runner import Runner
from minicpm4.engine.sequence import Drafts, Sequence
from minicpm4.engine.steps import Span, StepPlan
from minicpm4.kernels.cpu import CpuOps, isa_levels
from tests.fixtures.loading import load_model
from tests.fixtures.random_checkpoint import make_checkpoint

LEVELS = [level for level in isa_levels() if level != "amx"]
LENGTHS = (150, 40, 70)
PAGES = 3  # of a sequence
IDS = [np.random.default_rng(s).integers(4, 300, n).tolist() for s, n in enumerate(LENGTHS)]
SPARSE = SparseConfig(block_size=64, window_size=64, topk=1, dense_len=100)
Bits = dict[tuple[int, int], tuple[bytes, ...]]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("same") / "tiny", num_hidden_layers=2)


def sequences() -> list[Sequence]:
    pages = [list(range(PAGES * s, PAGES * (s + 1))) for s in range(len(LENGTHS))]
    return [Sequence(s, [*IDS[s]], 64 * PAGES, pages=pages[s]) for s in range(len(LENGTHS))]


def run(runner: Runner, sizes: tuple[tuple[int, ...], ...], *, together: bool) -> Bits:
    """Each sequence in pieces of its ``sizes``, again and again: all in one step, or one after another. Of
    each token the states after the last layer, of the last of each piece logits too."""
    found: Bits = {}
    todo = [
        [Span(one, start, stop - start, "last", hidden=(2,)) for start, stop in pieces(len(one.tokens), own)]
        for one, own in zip(sequences(), sizes, strict=True)
    ]
    while any(todo):
        waiting = [own for own in todo if own]
        spans = [own.pop(0) for own in (waiting if together else waiting[:1])]
        result, row = runner.execute(StepPlan(spans)), 0
        for span, logits in zip(spans, result.logits, strict=True):
            for position in range(span.start, span.stop):
                last = (logits.tobytes(),) if position == span.stop - 1 else ()
                found[span.sequence.pages[0] // PAGES, position] = (result.hidden[2][row].tobytes(), *last)
                row += 1
    return found


def pieces(length: int, sizes: tuple[int, ...]) -> list[tuple[int, int]]:
    found, stop = [], 0
    while stop < length:
        start, stop = stop, min(length, stop + sizes[len(found) % len(sizes)])
        found.append((start, stop))
    return found


class Engines:
    """Runners of one model by their numbers of threads, and what one thread computes token by token."""

    def __init__(self, path: Path, level: str, weights: str, sparse: SparseConfig | None, kv: Any) -> None:
        self.runners = []
        for threads in (1, 2):
            ops = CpuOps(threads, level)
            loaded = load_model(path, weights, ops).weights
            pages: Any = {"context": 64 * PAGES, "num_pages": 9, "page_size": 64, "kv": kv, "sparse": sparse}
            executor = Executor(ops, loaded.config, **pages)
            self.runners.append(executor.runner(loaded, sparse, max_rows=512, max_sequences=4))
        self.wanted = run(self.runners[0], ((1,), (1,), (1,)), together=False)


@lru_cache(maxsize=2)
def engines(*case: Any) -> Engines:
    return Engines(*case)


CASES = [
    ("int4", SPARSE, "bf16"),
    ("int8", None, "bf16"),
    ("int4", None, "int8"),
    ("int4", SPARSE, "float32"),
    ("auto", SPARSE, "bf16"),
]


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize(("weights", "sparse", "kv"), CASES)
def test_chunks_and_strangers(checkpoint: Path, level: str, weights: str, sparse: Any, kv: str) -> None:
    found = engines(checkpoint, level, weights, sparse, kv)
    sizes: list[tuple[tuple[int, ...], ...]] = [
        ((1,), (1,), (1,)),
        ((7,), (1,), (33,)),
        ((33, 1, 1), (9,), (64, 1)),
        ((512,), (512,), (512,)),
        ((64,), (17,), (3, 8)),
    ]
    for runner in found.runners:
        for each in sizes:
            for together in (True, False):
                for place, bits in run(runner, each, together=together).items():
                    assert bits == found.wanted[place][: len(bits)], (each, together, place)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize(("weights", "sparse", "kv"), CASES)
def test_drafts(checkpoint: Path, level: str, weights: str, sparse: Any, kv: str) -> None:
    """Those that are the text, in a tree with others, after the text before them."""
    found = engines(checkpoint, level, weights, sparse, kv)
    for runner in found.runners:
        for start in (30, 62, 120):
            one = sequences()[0]
            first, second, third = one.tokens[start : start + 3]
            drafts = Drafts((first, 5, second, 6, third), (-1, -1, 0, 0, 2))
            one.tokens[start:] = []
            runner.execute(StepPlan([Span(one, 0, start - 1)]))
            span = Span(one, start - 1, 1, "last", hidden=(2,)).with_drafts(drafts)
            result = runner.execute(StepPlan([span]))
            for row, position in ((0, start - 1), (1, start), (3, start + 1), (5, start + 2)):
                bits = (result.hidden[2][row].tobytes(), result.logits[row].tobytes())
                assert bits == found.wanted[0, position], (start, row)
