"""What tests of whole models share: a model of every kind, its logits, a conversion that rounds nothing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from minicpm4 import LLM
from minicpm4.model.source import OpenModel, open_model
from minicpm4.quantize import pipeline
from minicpm4.quantize import smooth as module
from minicpm4.quantize.options import QuantizeOptions
from tests.fixtures.random_checkpoint import make_checkpoint

MODELS: dict[str, dict[str, Any]] = {
    "minicpm-tied": {"tie": True},
    "minicpm": {},
    "llama": {"model_type": "llama"},
    "qwen2-biases": {"model_type": "qwen2"},
    "qwen3-norms": {"model_type": "qwen3"},
    "qwen3-tied": {"model_type": "qwen3", "tie": True},
    "qwen2-windows": {
        "model_type": "qwen2",
        "extra_config": {"sliding_window": 6, "use_sliding_window": True, "max_window_layers": 1},
    },
    "minicpm-one-kv-head": {"num_key_value_heads": 1, "hidden_size": 96},
    "llama-all-biases": {"model_type": "llama", "extra_config": {"attention_bias": True, "mlp_bias": True}},
}


@pytest.fixture(params=MODELS)
def model(request: pytest.FixtureRequest, tmp_path: Path) -> OpenModel:
    shape = {"head_dim": 16, "seed": 1, **MODELS[request.param]}
    return open_model(make_checkpoint(tmp_path / "model", **shape))


def logits(folder: Path, ids: Sequence[int]) -> np.ndarray:
    with LLM(str(folder), kv="float32", backend="ref") as llm:
        return llm.logits(list(ids))


class _Floats(dict):
    def __missing__(self, name: str) -> None:
        return None


def _smooth_by_half(layer: Any, names: Any, reached: Any, specs: Any, damping: Any) -> Any:
    """As if 0.5 were best in every stage, which rounding nothing cannot tell."""
    share = module.shared(layer.config, names)
    size = np.maximum(module._alike(reached.hessian.mean_size, share, layer.config.head_dim), 1e-8)
    factors = module._factors(size, 0.5)
    module.fold(layer, names, factors, share)
    return 0.5, factors


@pytest.fixture
def nothing_rounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is folded in is, and every weight stays a float."""
    monkeypatch.setattr(QuantizeOptions, "specs", lambda self, config: _Floats())
    monkeypatch.setattr(pipeline, "smooth", _smooth_by_half)
