"""Random models have the promised shape, formats and scale, and are the same each time."""

from __future__ import annotations

import numpy as np
import pytest

from minicpm4.errors import ConfigError
from minicpm4.evals.random_model import SHAPES, RandomCheckpoint, random_checkpoint
from minicpm4.formats import check_tensors
from minicpm4.formats.kinds import KINDS
from minicpm4.formats.packing import unpack
from minicpm4.formats.quant import QuantSpec
from tests.evals.conftest import TINY

DOWN = "model.layers.1.mlp.down_proj.weight"
SPECS = [
    QuantSpec(kind="f32"),
    QuantSpec(kind="f16"),
    QuantSpec(kind="bf16"),
    QuantSpec(kind="int8", group_size=64),
    QuantSpec(kind="int4", group_size=32),
    QuantSpec(kind="ternary", group_size=64),
]


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_weights_have_the_scale_of_a_fresh_model(spec: QuantSpec) -> None:
    tensor = RandomCheckpoint(TINY, lambda name, shape: spec).load(DOWN)
    assert (tensor.spec, tensor.shape) == (spec, (64, 128))
    values = unpack(tensor)
    # int4 codes run from -8 to 7: their mean is half a step below zero.
    assert abs(values.mean()) < 0.15 / np.sqrt(128)
    assert values.std() == pytest.approx(1 / np.sqrt(128), rel=0.05)


def test_ternary_codes_are_valid() -> None:
    spec = QuantSpec(kind="ternary", group_size=64)
    codes = KINDS["ternary"].unpack(RandomCheckpoint(TINY, lambda name, shape: spec).load(DOWN).codes)
    assert np.bincount(codes.ravel(), minlength=3).min() > codes.size / 4 and codes.max() == 2


def test_tensors_differ_and_stay_the_same() -> None:
    checkpoint = RandomCheckpoint(TINY, lambda name, shape: QuantSpec(kind="f32"))
    first = checkpoint.load("model.layers.0.mlp.up_proj.weight").codes
    assert np.array_equal(first, checkpoint.load("model.layers.0.mlp.up_proj.weight").codes)
    assert not np.array_equal(first, checkpoint.load("model.layers.0.mlp.gate_proj.weight").codes)


def test_norms_are_ones() -> None:
    checkpoint = RandomCheckpoint(TINY, lambda name, shape: QuantSpec(kind="f32"))
    assert np.array_equal(checkpoint.load_vector("model.norm.weight"), np.ones(64, np.float32))


def test_the_published_shape() -> None:
    checkpoint = random_checkpoint("random-minicpm4-0.5b")
    check_tensors(checkpoint, SHAPES["random-minicpm4-0.5b"])
    matrices = {name: info for name, info in checkpoint.tensors.items() if len(info.shape) == 2}
    assert sum(info.shape[0] * info.shape[1] for info in matrices.values()) == 73448 * 1024 + 24 * 1024 * (
        2 * 1024 + 2 * 128 + 3 * 4096
    )
    assert matrices[DOWN].spec.kind == "int4"
    assert matrices["model.embed_tokens.weight"].spec.kind == "int8"


@pytest.mark.parametrize(
    ("name", "weights", "message"),
    [
        ("random-minicpm4-0.6b", "auto", "use random-minicpm4"),
        ("random-minicpm4-0.5b", "int5", "did you mean"),
    ],
)
def test_unknown_names_are_refused(name: str, weights: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        random_checkpoint(name, weights)
