"""MLX's folders both ways: mlx-lm's have its logits here, and those of `convert --to mlx` have ours there.

Needs mlx-lm (its CPU build will do); `make test-transformers` installs it.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

mx = pytest.importorskip("mlx.core")
mlx_lm = pytest.importorskip("mlx_lm")

from mlx_lm.utils import load_model  # noqa: E402

from minicpm4 import LLM  # noqa: E402
from minicpm4.cli import run  # noqa: E402
from tests.fixtures.random_checkpoint import make_checkpoint  # noqa: E402

SHAPE = {"hidden_size": 128, "intermediate_size": 256, "num_attention_heads": 4, "num_key_value_heads": 2}
TYPES = ("llama", "qwen2", "qwen3")
IDS = np.random.default_rng(0).integers(0, 250, 100).tolist()


def model(folder: Path, model_type: str) -> Path:
    return make_checkpoint(folder, seed=3, dtype="bfloat16", model_type=model_type, head_dim=32, **SHAPE)


def apart(folder: Path) -> float:
    """The largest difference of logits, both in float32, as a share of the largest."""
    theirs, _ = load_model(folder)
    theirs.set_dtype(mx.float32)
    found = np.array(theirs(mx.array([IDS])))[0]
    with LLM(str(folder), context=128, kv="float32", backend="ref") as llm:
        ours = llm.logits(IDS)
    assert np.abs(ours).max() > 0.1  # of a model that tells tokens apart
    return float(np.abs(found - ours).max() / np.abs(ours).max())


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("model_type", TYPES)
def test_folders_that_mlx_lm_writes(model_type: str, bits: int, tmp_path: Path) -> None:
    source, out = model(tmp_path / "model", model_type), tmp_path / "out"
    mlx_lm.convert(str(source), str(out), quantize=True, q_bits=bits, q_group_size=32)
    assert apart(out) < 1e-5


@pytest.mark.parametrize(
    "options",
    [
        ["--weights", "int4", "--method", "rtn"],
        ["--weights", "int8", "--method", "rtn", "--group", "64", "--override", "embed_tokens=int4-g32"],
        ["--weights", "ternary", "--method", "rtn", "--head", "int8-g64"],
    ],
    ids=["int4", "int8", "ternary"],
)
@pytest.mark.parametrize("model_type", TYPES)
def test_folders_that_we_write(model_type: str, options: list[str], tmp_path: Path) -> None:
    source, out = model(tmp_path / "model", model_type), tmp_path / "out"
    assert run(["convert", str(source), str(out), "--to", "mlx", *options]) == 0
    assert apart(out) < 1e-5
