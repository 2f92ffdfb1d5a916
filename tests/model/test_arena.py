"""Weights keep their values and lie side by side, in line with huge pages."""

from __future__ import annotations

import itertools
import mmap

import numpy as np
import pytest

from minicpm4.formats.quant import PackedTensor
from minicpm4.model.arena import HUGE_PAGE, Arena
from tests.contract.packed import FORMATS, random_weight


def parts(tensor: PackedTensor) -> list[np.ndarray]:
    return [array for array in (tensor.codes, tensor.scales, tensor.offsets) if array is not None]


def test_values_are_kept_and_pieces_do_not_overlap() -> None:
    rng = np.random.default_rng(0)
    arena = Arena(block=1 << 20)
    before = [random_weight(rng, rows, case)[0] for case in FORMATS for rows in (1, 33, 700)]
    after = [arena.place(tensor) for tensor in before]
    for old, new in zip(before, after, strict=True):
        assert (new.spec, new.shape) == (old.spec, old.shape)
        for left, right in zip(parts(old), parts(new), strict=True):
            np.testing.assert_array_equal(left, right)
            assert right.dtype == left.dtype and right.ctypes.data % 64 == 0
    spans = sorted((a.ctypes.data, a.ctypes.data + a.nbytes) for tensor in after for a in parts(tensor))
    assert all(end <= start for (_, end), (start, _) in itertools.pairwise(spans))


def test_a_block_starts_at_a_huge_page_and_holds_what_is_larger() -> None:
    case = next(case for case in FORMATS if case[0] == "f32")
    small, large = (random_weight(np.random.default_rng(0), rows, case)[0] for rows in (8, 4000))
    arena = Arena(block=1 << 16)
    first, second = arena.place(small), arena.place(large)
    assert first.codes.ctypes.data % HUGE_PAGE == 0 and second.codes.ctypes.data % HUGE_PAGE == 0
    np.testing.assert_array_equal(second.codes, large.codes)


def test_systems_without_huge_pages_serve_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(mmap, "MADV_HUGEPAGE", raising=False)
    weight = random_weight(np.random.default_rng(0), 5, FORMATS[0])[0]
    np.testing.assert_array_equal(Arena().place(weight).codes, weight.codes)
