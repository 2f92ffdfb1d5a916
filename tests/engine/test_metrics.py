"""Counting blocks in runs gives what counting query by query gives."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from minicpm4.config import SparseConfig
from minicpm4.engine.metrics import BlockCount


@given(st.integers(0, 900), st.integers(0, 900), st.integers(-1, 700), st.integers(1, 6), st.integers(1, 4))
def test_runs_equal_single_queries(start: int, length: int, dense_len: int, topk: int, window: int) -> None:
    config = SparseConfig(dense_len=dense_len, topk=topk, window_size=64 * window)
    count = BlockCount(config)
    count.add(start, start + length)
    queries = range(start, start + length)
    assert count.read == sum(config.num_selected(p) for p in queries)
    assert count.visible == sum(p // 64 + 1 for p in queries)
    assert count.any_sparse == any(not config.is_dense_at(p) for p in queries)


def test_dense_reads_everything() -> None:
    count = BlockCount(None)
    count.add(0, 100)
    assert count.share == 1.0 and not count.any_sparse
