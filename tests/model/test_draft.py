"""The draft layer: its formula, the same on every table and however a text is cut; others are refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from minicpm4.config import ModelConfig, SparseConfig
from minicpm4.errors import CheckpointError
from minicpm4.formats.packing import unpack
from minicpm4.kernels.contract import OpTable
from minicpm4.kernels.ref import RefOps
from minicpm4.model.draft import residual_scale
from minicpm4.model.head_files import HeadFile, plan_head, read_draft
from minicpm4.model.weights import ModelWeights
from tests.fixtures.loading import load_model
from tests.fixtures.random_checkpoint import make_checkpoint
from tests.model.drafts import Drafter, make_draft

SPARSE = SparseConfig(block_size=64, window_size=64, topk=2, dense_len=-1)
IDS = np.random.default_rng(5).integers(4, 300, 401).tolist()


@pytest.fixture(scope="module", params=["minicpm", "qwen2", "qwen3"])
def made(request: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[ModelWeights, Path]:
    """A model and the folder of a draft layer for it."""
    folder = tmp_path_factory.mktemp("model")
    weights = load_model(make_checkpoint(folder / "model", model_type=request.param)).weights
    return weights, make_draft(folder / "draft", weights.config)


@pytest.fixture
def config(made: tuple[ModelWeights, Path]) -> ModelConfig:
    return made[0].config


def norm(x: np.ndarray, weight: np.ndarray, eps: float) -> np.ndarray:
    return x / np.sqrt((x.astype(np.float64) ** 2).mean(axis=-1, keepdims=True) + eps) * weight


def test_where_the_layer_adds_nothing_fc_s_product_is_left(ops: OpTable, made: Any) -> None:
    weights, folder = made
    config, drafter = weights.config, Drafter(ops, weights, folder)
    plain = read_draft(HeadFile(folder), config, RefOps())
    drafter.head = replace(drafter.head, residual=0.0)
    hidden, found, _ = drafter.feed(IDS[:40], [39])
    e = config.scale_emb * unpack(weights.embed)[IDS[1:40]]
    both = [
        norm(e, plain.norm_embed, config.rms_norm_eps),
        norm(hidden, plain.norm_hidden, config.rms_norm_eps),
    ]
    want = norm(np.concatenate(both, axis=-1) @ unpack(plain.fc.weight).T, weights.norm, config.rms_norm_eps)
    np.testing.assert_allclose(found, want, atol=2e-5 * np.abs(want).max())


@pytest.mark.parametrize("sparse", [None, SPARSE], ids=["dense", "sparse"])
def test_tables_agree_however_a_text_is_cut(ops: OpTable, made: Any, sparse: Any) -> None:
    weights, folder = made
    _, *want = Drafter(RefOps(), weights, folder, sparse).feed(IDS, [400])
    _, *got = Drafter(ops, weights, folder, sparse).feed(IDS, [130, 1, 1, 268])
    for one, other in zip(got, want, strict=True):
        np.testing.assert_allclose(one, other, atol=2e-4 * np.abs(other).max())


def test_residual_branches_are_scaled_as_those_of_one_layer_more(config: ModelConfig) -> None:
    scales = config.model_type == "minicpm"
    assert residual_scale(config) == pytest.approx(1.4 / 3**0.5 if scales else 1.0)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"hidden_size": 32}, "has hidden_size = 64, the model 32. use a head"),
        ({"num_hidden_layers": 3, "scale_depth": 1.4}, "has mup_denominator = "),
        ({"rope_theta": 5e5}, "has rope_theta = 10000.0, the model 500000.0"),
        ({"attention_bias": True}, "k_proj.bias in .* is missing, the model asks for"),
    ],
)
def test_a_layer_of_another_model_is_refused(tmp_path: Path, changed: Any, said: str) -> None:
    config = load_model(make_checkpoint(tmp_path / "model")).config
    folder = make_draft(tmp_path / "draft", config)
    plan_head(folder, replace(config, max_position_embeddings=1 << 15), 64)
    with pytest.raises(CheckpointError, match=said):
        plan_head(folder, replace(config, **changed), 64)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"leave_out": "layers.0.mlp.up_proj.weight"}, "up_proj.weight in .* is missing"),
        ({"num_hidden_layers": 2}, "has num_hidden_layers = 2, the model 1"),
        ({"mup_denominator": "3"}, "has mup_denominator = '3', the model 3"),
        ({"rope_theta": None}, "has rope_theta = None, the model 10000.0"),
    ],
)
def test_what_is_no_draft_layer_is_refused(tmp_path: Path, changed: Any, said: str) -> None:
    config = load_model(make_checkpoint(tmp_path / "model")).config
    with pytest.raises(CheckpointError, match=said):
        plan_head(make_draft(tmp_path / "draft", config, **changed), config, 64)
