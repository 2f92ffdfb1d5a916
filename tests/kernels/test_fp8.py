"""FP8 products with block scaling: bit for bit those of a slow NumPy form; gradients against float64."""

from __future__ import annotations

import math
from bisect import bisect_left
from functools import cache

import numpy as np
import pytest

torch = pytest.importorskip("torch")
from minicpm4.kernels.fp8 import fp8_linear, product, quantise_blocks, quantise_rows  # noqa: E402

# (n, k, m): whole blocks, ragged edges, less than one block
SHAPES = [(3, 256, 128), (5, 200, 130), (1, 7, 3), (9, 300, 140), (130, 128, 1)]


@cache
def e4m3_values() -> list[float]:
    """All finite non-negative numbers of e4m3 from its definition: 1 sign, 4 exponent bits of bias 7, 3 of
    mantissa; 0x7f is NaN."""
    found = []
    for bits in range(0x7F):
        exponent, mantissa = bits >> 3, bits & 7
        found.append(
            math.ldexp(mantissa / 8, -6) if exponent == 0 else math.ldexp(1 + mantissa / 8, exponent - 7)
        )
    return found


def to_e4m3(value: np.float32) -> float:
    """The nearest number of e4m3; of two equally near the one with an even code."""
    table = e4m3_values()
    size = abs(float(value))
    above = bisect_left(table, size, hi=len(table) - 1)
    code = min(max(above - 1, 0), above, key=lambda i: (abs(table[i] - size), i % 2))
    return math.copysign(table[code], float(value))


def scaled(x: np.ndarray, high: int) -> tuple[np.ndarray, np.ndarray]:
    """Codes (as float64) and scales of blocks of high x 128, one block after another."""
    codes = np.zeros(x.shape)
    scales = np.zeros((-(-x.shape[0] // high), -(-x.shape[1] // 128)), np.float32)
    for i in range(scales.shape[0]):
        for j in range(scales.shape[1]):
            where = np.s_[i * high : (i + 1) * high, j * 128 : (j + 1) * 128]
            top = max(np.float32(np.abs(x[where]).max()), np.float32(2.0**-100))
            scales[i, j] = top / np.float32(448)
            part = x[where] / scales[i, j]
            codes[where] = np.reshape([to_e4m3(v) for v in part.ravel()], part.shape)
    return codes, scales


def reference(x: np.ndarray, w: np.ndarray) -> np.ndarray:
    """x @ w.T as written in kernels/fp8.py: exact block sums, rounded once, scaled and added in float32."""
    a, sa = scaled(x, 1)
    b, sb = scaled(w, 128)
    total = np.zeros((len(x), len(w)), np.float32)
    for block in range(sa.shape[1]):
        part = np.s_[block * 128 : (block + 1) * 128]
        for i in range(len(x)):
            for j in range(len(w)):
                dot = np.float32(math.fsum(a[i, part] * b[j, part]))  # products of 8 bits are exact
                total[i, j] += dot * (sa[i, block] * sb[j // 128, block])
    return total


def normal(rows: int, columns: int, seed: int) -> np.ndarray:
    x = np.random.default_rng(seed).standard_normal((rows, columns))
    return (x * np.exp(np.random.default_rng(seed + 1).standard_normal((rows, columns)))).astype(np.float32)


def test_casting_is_rounding_to_the_nearest_even() -> None:
    middle = np.array(e4m3_values())
    halves = (middle[1:] + middle[:-1]) / 2
    near = [np.nextafter(halves.astype(np.float32), np.float32(s)) for s in (0, 1000)]
    values = np.concatenate([middle, halves, *near]).astype(np.float32)
    values = np.concatenate([values, -values])
    found = torch.from_numpy(values).to(torch.float8_e4m3fn).float().numpy()
    np.testing.assert_array_equal(found, [to_e4m3(v) for v in values])


@pytest.mark.parametrize(("n", "k", "m"), SHAPES)
def test_codes_and_scales_are_the_references(n: int, k: int, m: int) -> None:
    for x, quantise, high in ((normal(n, k, 1), quantise_rows, 1), (normal(m, k, 2), quantise_blocks, 128)):
        found = quantise(torch.from_numpy(x))
        codes, scales = scaled(x, high)
        np.testing.assert_array_equal(found.codes.float().numpy(), codes)
        np.testing.assert_array_equal(found.scales.numpy(), scales)
        wide = np.repeat(np.repeat(scales, high, 0), 128, 1)[: x.shape[0], :k]
        np.testing.assert_array_equal(found.values().numpy(), codes.astype(np.float32) * wide)


@pytest.mark.parametrize(("n", "k", "m"), SHAPES)
def test_products_are_the_references(n: int, k: int, m: int) -> None:
    x, w = normal(n, k, 3) * 1e-3, normal(m, k, 4) * 30
    found = fp8_linear(torch.from_numpy(x), torch.from_numpy(w))
    np.testing.assert_array_equal(found.numpy().view(np.uint32), reference(x, w).view(np.uint32))


@pytest.mark.parametrize(("n", "k", "m"), SHAPES[1:4])
def test_input_gradients_are_the_references(n: int, k: int, m: int) -> None:
    """dx = dy W with W's own codes, so the blocks of W are those of its rows and columns as they lie."""
    x, w = (torch.from_numpy(normal(r, k, 5 + r)).requires_grad_() for r in (n, m))
    dy = normal(n, m, 7)
    fp8_linear(x, w).backward(torch.from_numpy(dy))
    expected = reference(dy, np.ascontiguousarray(w.detach().numpy().T))
    np.testing.assert_array_equal(x.grad.numpy(), expected)


@pytest.mark.parametrize("shape", SHAPES)
def test_gradients_are_near_float64(shape: tuple[int, int, int]) -> None:
    n, k, m = shape
    rng = np.random.default_rng(8)
    x, w, dy = (rng.standard_normal(s).astype(np.float32) for s in ((n, k), (m, k), (n, m)))
    tx, tw, tb = (torch.from_numpy(a).requires_grad_() for a in (x, w, np.ones(m, np.float32)))
    y = fp8_linear(tx, tw, tb)
    y.backward(torch.from_numpy(dy))
    wide = [a.astype(np.float64) for a in (x, w, dy)]
    # e4m3 rounds each side by 2^-4 at most (std 2^-4 / sqrt(12) or so, of either); bf16 by 2^-9.
    for found, exact, tolerance in (
        (y.detach().numpy() - 1, wide[0] @ wide[1].T, 0.05),
        (tx.grad.numpy(), wide[2] @ wide[1], 0.05),
        (tw.grad.numpy(), wide[2].T @ wide[0], 0.006),
        (tb.grad.numpy(), wide[2].sum(axis=0), 1e-5),
    ):
        error = np.linalg.norm(found - exact) / np.linalg.norm(exact)
        assert error < tolerance
        if tolerance == 0.05 and k * n > 100:
            assert error > 1e-3, "this was not rounded to FP8"


def test_outliers_spoil_their_block_only() -> None:
    x = np.ones((2, 384), np.float32) * 0.01
    x[1, 130] = 1e6
    values = quantise_rows(torch.from_numpy(x)).values().numpy()
    assert (values[1, 128:256] == 0).sum() == 127
    np.testing.assert_allclose(values[0], 0.01, rtol=0.04)
    np.testing.assert_allclose(values[1, 256:], 0.01, rtol=0.04)


@pytest.mark.parametrize("size", [0.0, 1e-38, 1e-42, 3e38])
def test_extreme_sizes_stay_finite(size: float) -> None:
    x = np.full((2, 130), size, np.float32)
    x[0] *= -1
    values = quantise_rows(torch.from_numpy(x)).values().numpy()
    assert np.isfinite(values).all()
    np.testing.assert_allclose(values, x, rtol=0.07, atol=2.0**-100)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_bad_values_are_not_hidden(bad: float) -> None:
    x = np.ones((3, 256), np.float32)
    x[1, 200] = bad
    y = fp8_linear(torch.from_numpy(x), torch.ones(5, 256))
    assert torch.isfinite(y[0]).all() and not torch.isfinite(y[1]).any()


def test_autocast_gives_its_type_and_the_same_products() -> None:
    x, w = torch.from_numpy(normal(4, 256, 9)).requires_grad_(), torch.from_numpy(normal(8, 256, 10))
    plain = fp8_linear(x, w)
    with torch.autocast("cpu", torch.bfloat16):
        y = fp8_linear(x[None], w)
    assert y.dtype == torch.bfloat16 and y.shape == (1, 4, 8)
    assert torch.equal(y[0], plain.to(torch.bfloat16))
    y.float().sum().backward()
    assert x.grad is not None and x.grad.dtype == torch.float32


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU with FP8 units")
@pytest.mark.parametrize(("n", "k", "m"), [(4, 256, 128), (5, 640, 384)])
def test_the_gpus_own_products_are_near_the_emulation(n: int, k: int, m: int) -> None:
    x, w = torch.from_numpy(normal(n, k, 11)), torch.from_numpy(normal(m, k, 12))
    expected = product(quantise_rows(x), quantise_blocks(w))
    found = product(quantise_rows(x.cuda()), quantise_blocks(w.cuda())).cpu()
    assert (found - expected).norm() < 0.01 * expected.norm()
