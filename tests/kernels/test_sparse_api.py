"""attend_sparse on plain arrays."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minicpm4.config import SparseConfig
from minicpm4.errors import ConfigError, Minicpm4Error, RequestError
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


ODD = {
    "config is a dict": {"config": {}},
    "fewer than 1,073,741,824 tokens": {"k": np.broadcast_to(np.float32(0), (1 << 30, 1, 2))},
    r"start = 90\.0 is no whole number": {"start": 90.0},
    "at most 512": {"q": np.zeros((10, 4, 514), np.float32), **dict.fromkeys("kv", np.zeros((100, 2, 514)))},
}


@pytest.mark.parametrize("message", ODD)
def test_odd_sizes_are_refused_by_name(message: str) -> None:
    q, k, v = arrays(10, 100)
    given: dict[str, Any] = {"q": q, "k": k, "v": v, "start": 90, "config": CONFIG, **ODD[message]}
    with pytest.raises(RequestError, match=message):
        attend_sparse(**given, backend="cpu")


@st.composite
def calls(draw: st.DrawFn) -> dict[str, Any]:
    """Arguments that mostly fit together, of sizes that no model has."""
    stride, hkv = draw(st.sampled_from([1, 2, 3, 5, 16])), draw(st.sampled_from([1, 2, 3, 7]))
    block = stride * draw(st.sampled_from([1, 2, 3, 4, 1000]))
    hq = hkv * draw(st.sampled_from([1, 2, 3])) + draw(st.sampled_from([0, 0, 0, 1]))
    n, d = draw(st.integers(0, 70)), draw(st.sampled_from([1, 2, 6, 18, 512, 514, 2, 6]))
    nq = draw(st.sampled_from([n, n, n, 1, n // 2, n + 1]))
    sparse = {
        "kernel_stride": stride,
        "kernel_size": stride * draw(st.sampled_from([1, 2, 3, 50])),
        "block_size": block,
        "window_size": block * draw(st.sampled_from([1, 2, 3, 1 << 12])) + draw(st.sampled_from([0, 1])),
        "topk": draw(st.sampled_from([1, 2, 5, 1_000_000, (1 << 24) - 1])),
        "init_blocks": draw(st.sampled_from([0, 1])),
        "dense_len": draw(st.sampled_from([-1, 0, 40, None, 1 << 40])),
        "lse_approx": draw(st.booleans()),
    }
    rng = np.random.default_rng(draw(st.integers(0, 9)))
    dtype = draw(st.sampled_from([np.float32, np.float64, np.float16, np.longdouble]))
    q, k, v = (rng.standard_normal(shape).astype(dtype) for shape in ((nq, hq, d), (n, hkv, d), (n, hkv, d)))
    kv = draw(st.sampled_from(["float32", "bf16", "int8"]))
    return {"q": q, "k": k, "v": v, "start": n - nq, "kv": kv, "sparse": sparse}


@settings(max_examples=150)
@given(call=calls())
def test_odd_sizes_are_computed_or_refused(call: dict[str, Any]) -> None:
    found = []
    for backend in ("cpu", "ref"):
        values = dict(call)
        try:
            config = SparseConfig(**values.pop("sparse"))
            found.append(attend_sparse(**values, config=config, backend=backend))
        except Minicpm4Error as error:
            found.append(type(error))
    if not isinstance(found[0], tuple) or not isinstance(found[1], tuple):
        assert found[0] == found[1]
        return
    (out, blocks), (truth, true_blocks) = found
    assert blocks.shape == true_blocks.shape and np.isfinite(out).all()
    same = (blocks == true_blocks).all((1, 2))  # of blocks that score alike either may be chosen
    np.testing.assert_allclose(out[same], truth[same], rtol=2e-2, atol=2e-2)
