"""What each matrix becomes is known before it is read, and is what loading makes of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from minicpm4.cli import run
from minicpm4.errors import ConfigError
from minicpm4.formats.names import EMBED
from minicpm4.formats.packing import unpack
from minicpm4.formats.quant import QuantSpec
from minicpm4.kernels.ref import RefOps
from minicpm4.model.loader import load_weights
from minicpm4.model.source import open_model
from minicpm4.model.weight_plan import WeightPlan, plan_weights
from tests.fixtures.loading import load_model
from tests.fixtures.random_checkpoint import make_checkpoint


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("model"), num_hidden_layers=2)


def plan(folder: Path, weights: str = "auto") -> WeightPlan:
    found = open_model(folder)
    return plan_weights(found.checkpoint, found.config, weights)


@pytest.mark.parametrize("weights", ["auto", "f32", "bf16", "int8", "int4", "ternary"])
def test_loading_makes_what_was_planned(folder: Path, weights: str) -> None:
    planned, loaded = plan(folder, weights), load_model(folder, weights).weights
    assert planned.nbytes == loaded.nbytes
    assert sum(planned.formats().values()) == len(list(loaded.matrices())) == len(planned.matrices)
    assert planned.kinds == {matrix.spec.kind for matrix in loaded.matrices()}
    assert next(iter(planned)).name == EMBED and next(iter(planned)).target == loaded.embed.spec


def test_floats_as_stored_may_prove_to_be_rounded(folder: Path) -> None:
    int4, stored = QuantSpec(kind="int4", group_size=64), next(iter(plan(folder))).read
    assert all(one.packs and one.may_be(int4) and one.may_be(stored) for one in plan(folder))
    assert not any(one.packs or one.may_be(int4) for one in plan(folder, "int8"))


class Wide(RefOps):
    """A table without kernels for GGUF's kinds."""

    widens = True


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of matrices in five of GGUF's types."""
    folder = tmp_path_factory.mktemp("mixed")
    model = make_checkpoint(folder / "model", hidden_size=256, intermediate_size=512, head_dim=64, seed=4)
    types = ("q5_0", "down_proj=q4_k", "gate_proj=q5_k", "embed|lm_head|v_proj=q6_k", "o_proj=q8_0")
    more = [word for one in types for word in ("--gguf-type", one)]
    assert run(["convert", str(model), str(folder / "m.gguf"), *more]) == 0
    return folder / "m.gguf"


def test_types_of_gguf_are_held_as_they_are(mixed: Path) -> None:
    """And as the plan says; where a table asks for it widened, every weight the same."""
    found = open_model(mixed)
    planned, ops = plan_weights(found.checkpoint, found.config), Wide()
    wide = planned.on(ops)
    assert planned.on(RefOps()) is planned and planned.kinds == {"int4", "int5", "int6", "int8"}
    assert wide.kinds == {"int4", "int8"} and wide.nbytes > 1.2 * planned.nbytes
    one, other = (
        load_weights(found.checkpoint, found.config, plan, ops=table)
        for plan, table in ((planned, RefOps()), (wide, ops))
    )
    assert "Q5_K as int5-g32" in one.notes and "Q5_K as int8-g32" in other.notes
    assert (one.weights.nbytes, other.weights.nbytes) == (planned.nbytes, wide.nbytes)
    for held, widened in zip(one.weights.matrices(), other.weights.matrices(), strict=True):
        np.testing.assert_array_equal(unpack(held), unpack(widened))
    other.refill(found.checkpoint)
    assert other.version == 1 and other.weights.nbytes == wide.nbytes


def test_int8_that_is_asked_for_holds_what_had_fewer_bits_as_it_was(mixed: Path) -> None:
    """What had int4 is rounded anew."""
    asked, stored = load_model(mixed, "int8"), load_model(mixed, ops=RefOps())
    assert asked.weights.nbytes == asked.plan.nbytes
    for name, matrix in asked.weights.named_matrices():
        values = unpack(dict(stored.weights.named_matrices())[name])
        same = np.array_equal(unpack(matrix), values)
        assert matrix.spec.kind == "int8" and same != ("down_proj" in name), name


def test_unknown_choices_are_refused(folder: Path) -> None:
    with pytest.raises(ConfigError, match="weights = 'int5' is not a weight format"):
        plan(folder, "int5")


def test_int4_has_groups_of_32_unless_others_are_said(folder: Path) -> None:
    assert plan(folder, "int4").formats() == {"int4-g32": 14, "int8-g64": 2}
    assert plan(folder, "int4-g64").formats() == {"int4-g64": 14, "int8-g64": 2}
    assert plan(folder, "int8-g32").formats() == {"int8-g32": 16}


def test_where_a_group_does_not_fit_another_is_taken(tmp_path: Path) -> None:
    wide = make_checkpoint(tmp_path / "model", hidden_size=96, intermediate_size=160, head_dim=24)
    formats = {one.name: str(one.target) for one in plan(wide, "int4-g64")}
    assert set(formats.values()) == {"int4-g32", "int8-g32"}


@pytest.mark.parametrize("weights", ["int4-g", "int4-g48", "bf16-g64", "f64", "int4-g64 "])
def test_groups_that_cannot_be_are_refused(folder: Path, weights: str) -> None:
    with pytest.raises(ConfigError, match="groups may be said: int4-g64"):
        plan(folder, weights)


@pytest.mark.parametrize("weights", ["int4", "int4-g64"])
def test_loading_with_a_group_makes_what_was_planned(folder: Path, weights: str) -> None:
    loaded = load_model(folder, weights).weights
    assert {str(matrix.spec) for matrix in loaded.matrices()} == set(plan(folder, weights).formats())
