"""Golden vectors of InfLLM v2: selected blocks and outputs from float64 arithmetic."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from minicpm4.config import SparseConfig
from minicpm4.formats.bf16 import bf16_to_f32, f32_to_bf16
from minicpm4.kernels import attend_sparse
from minicpm4.kernels.cpu import emulated_levels, isa_levels
from tests.levels import HALVES

FILES = sorted((Path(__file__).parent / "data").glob("*.npz"))
# Of the third file, one row (of 900 x 2) has two blocks whose scores differ by less than the rounding
# of keys to bf16 does to them. The truth on the rounded keys flips it too.
ROWS_FLIPPED_BY_ROUNDING = {"infllm_v2_decode": 0, "infllm_v2_prefill": 0, "infllm_v2_prefill_lse": 1}


@pytest.fixture(params=["ref", *isa_levels(), *emulated_levels()])
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    if request.param == "ref":
        yield "ref"
    else:
        monkeypatch.setenv("MINICPM4_ISA", request.param)
        yield "cpu"


def load(path: Path) -> tuple[dict[str, Any], SparseConfig]:
    with np.load(path) as file:
        data = dict(file)
    names = ("kernel_size", "kernel_stride", "block_size", "init_blocks", "topk")
    settings = {name: int(data[name]) for name in names}
    window = int(data["local_blocks"]) * settings["block_size"]
    lse = bool(data["lse_approx"])
    return data, SparseConfig(**settings, window_size=window, dense_len=-1, lse_approx=lse)


def run(data: dict[str, Any], config: SparseConfig, backend: str, kv: str) -> tuple[Any, Any]:
    q, k, v = data["q"], data["k"], data["v"]
    return attend_sparse(q, k, v, config, start=int(data["start"]), backend=backend, kv=kv)


def error(out: Any, truth: Any) -> float:
    """Largest error of any query head, relative to the largest norm of one."""
    gap = np.linalg.norm(out.astype(np.float64) - truth, axis=-1)
    return float(gap.max() / np.linalg.norm(truth.astype(np.float64), axis=-1).max())


def test_there_are_three_files() -> None:
    assert [path.stem for path in FILES] == sorted(ROWS_FLIPPED_BY_ROUNDING)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_float32(path: Path, backend: str) -> None:
    data, config = load(path)
    out, blocks = run(data, config, backend, "float32")
    np.testing.assert_array_equal(blocks, data["blocks"])
    assert error(out, data["out"]) < 1e-5


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_bf16(path: Path, backend: str) -> None:
    data, config = load(path)
    out, blocks = run(data, config, backend, "bf16")
    flipped = (blocks != data["blocks"]).any(axis=-1)
    assert flipped.sum() == ROWS_FLIPPED_BY_ROUNDING[path.stem]
    heads = np.repeat(~flipped, data["q"].shape[1] // data["k"].shape[1], axis=1)
    # Rounding keys and values is most of the error: on them, float64 arithmetic has the same.
    assert error(out[heads], data["out"][heads]) < 8e-3
    rounded = {**data, **{name: bf16_to_f32(f32_to_bf16(data[name])) for name in ("k", "v")}}
    truth, chosen = run(rounded, config, "ref", "float32")
    np.testing.assert_array_equal(blocks, chosen)
    # Dot products of bf16 pairs round the weights of the softmax, too.
    rounds_weights = backend == "cpu" and os.environ["MINICPM4_ISA"] in HALVES
    assert error(out, truth) < (2e-3 if rounds_weights else 1e-5)
