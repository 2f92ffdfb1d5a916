"""Arrays of the host reach the GPU's table as arrays of the device."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from minicpm4.errors import UnsupportedError
from minicpm4.evals.limits import measure_limits
from minicpm4.kernels import attend_sparse
from tests.cli.conftest import Result, minicpm
from tests.contract.paged import SMALL, config
from tests.fixtures.random_checkpoint import make_checkpoint
from tests.gpu.arrays import OnArrays

__all__ = ["minicpm"]


# NumPy, which the interpreter computes with, warns where a GPU goes on.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")
Run = Callable[..., Result]


def arrays(nq: int, n: int) -> tuple[Any, Any, Any]:
    rng = np.random.default_rng(0)
    return tuple(rng.standard_normal((m, h, 16), np.float32) for m, h in ((nq, 4), (n, 2), (n, 2)))  # type: ignore[return-value]


def test_attend_sparse_takes_plain_arrays() -> None:
    q, k, v = arrays(10, 90)
    found = [attend_sparse(q, k, v, config(SMALL), start=80, backend=name) for name in ("gpu", "ref")]
    (out, blocks), (truth, wanted) = found
    assert isinstance(out, np.ndarray) and out.dtype == np.float32
    np.testing.assert_array_equal(blocks, wanted)
    np.testing.assert_allclose(out, truth, rtol=1e-3, atol=1e-4)
    with pytest.raises(UnsupportedError, match=r"pages of int8.*kv='bf16'"):
        attend_sparse(q, k, v, config(SMALL), start=80, backend="gpu", kv="int8")


def test_bench_measures_the_gpu(minicpm: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("minicpm4.evals.speed.WARM_UP", 1)
    path = make_checkpoint(tmp_path, num_hidden_layers=1)
    sparse = ("--attention", "sparse", "--sparse", "kernel=8,stride=4,block=16,window=32,topk=2")
    sizes = ("--prefill", "4", "--decode", "1", "--repeats", "1", "--chunk", "4", "--depths", "40")
    result = minicpm("bench", str(path), "--backend", "gpu", *sparse, *sizes)
    assert result.code == 0, result.err
    assert "gpu: Triton" in result.err
    assert sum(line.startswith(("prefill", "decode")) for line in result.out.splitlines()) == 2
    refused = minicpm("bench", str(path), "--backend", "gpu", "--kv", "int8", *sizes)
    assert refused.code == 2 and "pages of int8" in refused.err and "loading" not in refused.err


def test_limits_are_the_device_s() -> None:
    limits = measure_limits(OnArrays().inner, 1, megabytes=1, size=64)
    assert limits.bandwidth > 1e6 and limits.float32 > 1e6
