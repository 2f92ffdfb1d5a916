"""Every document is in one bin; the chart's curves end at one."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from minicpm4.data.lengths import bins, length_chart


@given(st.lists(st.integers(1, 1 << 20), max_size=50))
def test_bins_hold_every_document_once(given_lengths: list[int]) -> None:
    lengths = np.array(given_lengths, np.int64)
    found = bins(lengths)
    assert sum(one.documents for one in found) == len(lengths)
    assert sum(one.tokens for one in found) == lengths.sum()
    assert all(one.high == 2 * one.low for one in found)
    assert [one.low for one in found[1:]] == [one.high for one in found[:-1]]
    assert not found or (found[0].documents and found[-1].documents)


def test_bins_by_hand() -> None:
    found = bins(np.array([1, 3, 2, 9]))
    assert [(one.low, one.documents, one.tokens) for one in found] == [
        (1, 1, 1),
        (2, 2, 5),
        (4, 0, 0),
        (8, 1, 9),
    ]


def test_the_chart_has_both_curves_and_few_points() -> None:
    drawn = length_chart("Lengths", np.arange(1, 50_000))
    assert drawn.count("<polyline") == 2 and drawn.count("<circle") == 2 * 17
    assert ">of documents<" in drawn and ">of tokens<" in drawn
    assert length_chart("One", np.array([7])).startswith("<svg")
