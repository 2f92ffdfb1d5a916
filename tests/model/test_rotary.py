"""Rotary tables: growth, scalings, and what is fixed by the planned context."""

import dataclasses
import tracemalloc

import numpy as np
import pytest

from minicpm4.config import ModelConfig, RopeScaling
from minicpm4.config.fields import SIZES
from minicpm4.model.rotary import RotaryTable, inverse_frequencies
from tests.fixtures.tiny import tiny_config

CONFIG = tiny_config(
    model_type="llama",
    num_hidden_layers=1,
    max_position_embeddings=4096,
)


def scaled(**fields):
    return dataclasses.replace(CONFIG, rope_scaling=RopeScaling(**fields))


def test_angles_follow_theta():
    cos, sin = RotaryTable(CONFIG, 4096).tables(10)
    angle = 7 * 10000.0 ** (-2 * 3 / 16)
    assert cos[7, 3] == pytest.approx(np.cos(angle), abs=1e-6)
    assert sin[7, 3] == pytest.approx(np.sin(angle), abs=1e-6)


def test_growing_changes_no_row():
    grown = RotaryTable(CONFIG, 4096)
    grown.tables(5)
    cos, sin = grown.tables(4000)
    whole_cos, whole_sin = RotaryTable(CONFIG, 4096).tables(4000)
    np.testing.assert_array_equal(cos[:4000], whole_cos[:4000])
    np.testing.assert_array_equal(sin[:4000], whole_sin[:4000])


def test_linear_divides_frequencies():
    plain, _ = inverse_frequencies(CONFIG, 100)
    stretched, factor = inverse_frequencies(scaled(rope_type="linear", factor=4.0), 100)
    np.testing.assert_allclose(stretched, plain / 4)
    assert factor == 1.0


@pytest.mark.parametrize(("context", "which"), [(1024, 1.0), (1025, 2.0)])
def test_longrope_list_is_chosen_by_planned_context(context, which):
    config = scaled(
        rope_type="longrope",
        short_factor=(1.0,) * 8,
        long_factor=(2.0,) * 8,
        original_max_position_embeddings=1024,
    )
    plain, _ = inverse_frequencies(CONFIG, context)
    inverse, factor = inverse_frequencies(config, context)
    np.testing.assert_allclose(inverse, plain / which)
    assert factor == pytest.approx(np.sqrt(1 + np.log(4) / np.log(1024)))


@pytest.mark.parametrize(("kind", "ratio"), [("llama", 8), ("minicpm", 4)])
def test_longrope_attention_follows_the_factor_but_for_minicpm(kind, ratio):
    table = {"rope_type": "longrope", "factor": 8, "short_factor": [1] * 8, "long_factor": [2] * 8}
    sizes = {name: getattr(CONFIG, name) for name in SIZES}
    raw = {**sizes, "model_type": kind, "rope_scaling": {**table, "original_max_position_embeddings": 1024}}
    scales = {"scale_emb": 1, "scale_depth": 1, "dim_model_base": 64} if kind == "minicpm" else {}
    _, factor = inverse_frequencies(ModelConfig.from_hf(raw | scales), 4096)
    assert factor == pytest.approx(np.sqrt(1 + np.log(ratio) / np.log(1024)))


def test_dynamic_leaves_short_contexts_alone():
    config = scaled(rope_type="dynamic", factor=2.0)
    own = CONFIG.max_position_embeddings
    plain, _ = inverse_frequencies(CONFIG, own)
    np.testing.assert_allclose(inverse_frequencies(config, own)[0], plain)
    assert (inverse_frequencies(config, 2 * own)[0][1:] < plain[1:]).all()


def test_yarn_keeps_fast_and_interpolates_slow_dimensions():
    config = scaled(rope_type="yarn", factor=4.0, original_max_position_embeddings=1024)
    plain, _ = inverse_frequencies(CONFIG, 4096)
    inverse, factor = inverse_frequencies(config, 4096)
    assert inverse[0] == pytest.approx(plain[0])
    assert inverse[-1] == pytest.approx(plain[-1] / 4)
    assert factor == pytest.approx(0.1 * np.log(4) + 1)


def test_planned_bytes_cover_the_tables():
    table = RotaryTable(CONFIG, 4096)
    cos, sin = table.tables(4096)
    assert cos.nbytes + sin.nbytes <= RotaryTable.nbytes(CONFIG, 4096)


def test_a_long_table_takes_no_more_than_it_says() -> None:
    table = RotaryTable(CONFIG, 65536)
    tracemalloc.start()
    try:
        table.tables(30000)
        table.tables(65536)
        extra = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert extra < 0.05 * RotaryTable.nbytes(CONFIG, 65536)
