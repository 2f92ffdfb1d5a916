"""attend_sparse on plain arrays."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from minicpm4.config import SparseConfig
from minicpm4.errors import ConfigError, RequestError
from minicpm4.kernels import attend_sparse
from tests.contract.paged import attention_truth

CONFIG = SparseConfig(kernel_size=8, kernel_stride=4, block_size=16, window_size=32, topk=3, dense_len=-1)


def arrays(nq: int, n: int, heads: tuple[int, int] = (4, 2), d: int = 16) -> tuple[Any, Any, Any]:
    rng = np.random.default_rng(0)
    make = rng.standard_normal
    return (
        make((nq, heads[0], d), np.float32),
        make((n, heads[1], d), np.float32),
        make((n, heads[1], d), np.float32),
    )


@pytest.mark.parametrize("backend", ["auto", "cpu", "ref"])
def test_output_is_attention_over_the_blocks_it_reports(backend: str) -> None:
    q, k, v = arrays(150, 150)
    out, blocks = attend_sparse(q, k, v, CONFIG, backend=backend)
    assert out.shape == q.shape and out.dtype == np.float32
    assert blocks.shape == (150, 2, 10) and blocks.dtype == bool
    for p in range(150):
        assert blocks[p, 0].sum() == CONFIG.num_selected(p)
        truth = attention_truth(q[p], k.astype(np.float64), v.astype(np.float64), p, blocks[p], 16)
        np.testing.assert_allclose(out[p], truth, rtol=1e-4, atol=1e-6)


def test_last_queries_alone_are_the_same() -> None:
    q, k, v = arrays(150, 150)
    out, blocks = attend_sparse(q, k, v, CONFIG, backend="cpu")
    some, chosen = attend_sparse(q[140:], k, v, CONFIG, start=140, backend="cpu")
    np.testing.assert_allclose(some, out[140:], rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(chosen, blocks[140:])


def test_dense_rows_report_every_block_up_to_their_own() -> None:
    q, k, v = arrays(150, 150)
    config = SparseConfig(
        kernel_size=8, kernel_stride=4, block_size=16, window_size=32, topk=3, dense_len=121
    )
    _, blocks = attend_sparse(q, k, v, config, backend="cpu")
    np.testing.assert_array_equal(blocks[119, 0], np.arange(10) <= 119 // 16)
    assert blocks[120, 0].sum() == 5


def test_bf16_rounds_keys_and_values_first() -> None:
    q, k, v = arrays(1, 40)
    coarse = [(x.view(np.uint32) & 0xFFFF0000).view(np.float32) for x in (k, v)]  # exact in bf16
    expected, _ = attend_sparse(q, *coarse, CONFIG, start=39, backend="cpu")
    found, _ = attend_sparse(q, *coarse, CONFIG, start=39, backend="cpu", kv="bf16")
    np.testing.assert_array_equal(found, expected)
    rounded, _ = attend_sparse(q, k, v, CONFIG, start=39, backend="cpu", kv="bf16")
    exact, _ = attend_sparse(q, k, v, CONFIG, start=39, backend="cpu")
    assert 1e-4 < np.abs(rounded - exact).max() < 2e-2


def test_other_float_types_and_layouts_are_taken() -> None:
    q, k, v = arrays(60, 60)
    out, _ = attend_sparse(q, k, v, CONFIG, backend="cpu")
    wide, _ = attend_sparse(q.astype(np.float64), np.asfortranarray(k), v[::-1][::-1], CONFIG, backend="cpu")
    np.testing.assert_array_equal(out, wide)


BAD = {
    "must be the last tokens.*start = 90": {"start": 80},
    "queries must be the last": {"start": -1},
    "cache type.*bf16, int8, float32": {"kv": "fp8"},
    "multiple of 2 key/value heads": {"q": np.zeros((10, 3, 16), np.float32)},
    "head size 8 and k 16": {"q": np.zeros((10, 4, 8), np.float32)},
    "k has shape .* and v": {"v": np.zeros((99, 2, 16), np.float32)},
    "k is a int64 array": {"k": np.zeros((100, 2, 16), np.int64)},
    "v is a list": {"v": [1.0]},
    "at least 1": {"q": np.zeros((0, 4, 16), np.float32)},
    "pass the keys and values": {"q": np.zeros((101, 4, 16), np.float32)},
}


@pytest.mark.parametrize("message", BAD)
def test_arrays_that_do_not_fit(message: str) -> None:
    q, k, v = arrays(10, 100)
    given: dict[str, Any] = {"q": q, "k": k, "v": v, "start": 90, **BAD[message]}
    with pytest.raises(RequestError, match=message):
        attend_sparse(given.pop("q"), given.pop("k"), given.pop("v"), CONFIG, backend="cpu", **given)


def test_unknown_backend() -> None:
    with pytest.raises(ConfigError, match="backend"):
        attend_sparse(*arrays(10, 10), CONFIG, backend="tpu")
