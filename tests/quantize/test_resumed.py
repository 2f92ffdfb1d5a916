"""A conversion that goes on from what an earlier run has kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from minicpm4.formats.packing import unpack
from minicpm4.model.packed_file import write
from minicpm4.model.source import OpenModel, open_model
from minicpm4.quantize import pipeline
from minicpm4.quantize.options import METHODS
from minicpm4.quantize.walk import as_floats
from tests.fixtures.random_checkpoint import make_checkpoint
from tests.quantize.test_pipeline import rounded


@pytest.fixture
def rounds(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Which layers are rounded, from here on."""
    calls: list[int] = []
    round_layer = pipeline._round

    def counted(layer: Any, index: int, *rest: Any) -> Any:
        calls.append(index)
        return round_layer(layer, index, *rest)

    monkeypatch.setattr(pipeline, "_round", counted)
    return calls


def test_a_killed_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rounds: list[int]) -> None:
    model = open_model(make_checkpoint(tmp_path / "model", seed=4, num_hidden_layers=3))
    whole = rounded(model, tmp_path / "whole")
    round_layer = pipeline._round

    def killed(layer: Any, index: int, *rest: Any) -> Any:
        if index == 2:
            raise KeyboardInterrupt
        return round_layer(layer, index, *rest)

    with monkeypatch.context() as context:
        context.setattr(pipeline, "_round", killed)
        with pytest.raises(KeyboardInterrupt):
            rounded(model, tmp_path / "part")
    rounds.clear()
    made = rounded(model, tmp_path / "part")
    assert rounds == [2] and len(made.rows) == 21
    assert sorted(made.rows, key=str) == sorted(whole.rows, key=str)  # of the earlier run, too
    for index in range(3):
        old, new = whole.layer(index), made.layer(index)
        assert old.keys() == new.keys()
        for name in old:
            np.testing.assert_array_equal(unpack(old[name]), unpack(new[name]), err_msg=name)


def test_a_kept_layer_is_taken_by_its_key_unless_it_is_damaged(
    model: OpenModel, tmp_path: Path, rounds: list[int]
) -> None:
    rounded(model, tmp_path / "part")
    rounds.clear()
    rounded(model, tmp_path / "part", skip_first=9)
    assert rounds == []  # the key, which callers make of the settings, was the same here
    file = tmp_path / "part" / "layer-00001.safetensors"
    data = bytearray(file.read_bytes())
    data[-100] ^= 4
    file.write_bytes(data)
    rounded(model, tmp_path / "part")
    assert rounds == [1]


@pytest.mark.parametrize(
    "change",
    [
        lambda tensors, name: tensors.pop(f"{name}mlp.up_proj.weight"),
        lambda tensors, name: tensors.update({f"{name}mlp.up_proj.weight": as_floats(np.ones((128, 64)))}),
        lambda tensors, name: tensors.update({f"{name}input_layernorm.weight": as_floats(np.ones((2, 64)))}),
        lambda tensors, name: tensors.update({f"{name}x": as_floats(np.ones((1, 64)))}),
        lambda tensors, name: tensors.update({f"{name}stored.keys": as_floats(np.ones((1, 64)))}),
        lambda tensors, name: tensors.update(
            {f"{name}stored.{part}": as_floats(np.ones((1, 32))) for part in ("keys", "values")}
        ),
    ],
)
def test_a_kept_layer_of_other_tensors_is_made_anew(tmp_path: Path, change: Any) -> None:
    """Whole and of this conversion by all that its file says."""
    model = open_model(make_checkpoint(tmp_path / "model", seed=4, num_hidden_layers=1))
    whole = rounded(model, tmp_path / "part", method="rtn").layer(0)
    tensors = dict(whole)
    change(tensors, "model.layers.0.")
    write(tmp_path / "part" / "layer-00000.safetensors", {"for": "a test"}, tensors)
    made = rounded(model, tmp_path / "part", method="rtn").layer(0)
    assert made.keys() == whole.keys()
    for name, one in made.items():
        np.testing.assert_array_equal(unpack(one), unpack(whole[name]), err_msg=name)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "more",
    [
        {"overrides": {"down_proj": "bf16"}},
        {"overrides": {"v_proj|up_proj": "bf16", "gate_proj": "float"}, "stored_prefix": (5, 9)},
        {"overrides": {"layers.1": "f32", "o_proj": "bf16"}, "rotate": True},
    ],
)
def test_what_a_killed_run_ends_as_is_what_one_run_makes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, more: dict[str, Any]
) -> None:
    """To the byte, reports and their order, too: texts went on through floats that were not rounded yet."""
    model = open_model(make_checkpoint(tmp_path / "model", seed=4, num_hidden_layers=3))
    whole = rounded(model, tmp_path / "whole", method=method, **more)
    real = pipeline._write
    for _ in range(2):

        def one_more(*given: Any) -> None:
            real(*given)
            raise KeyboardInterrupt

        with monkeypatch.context() as context:
            context.setattr(pipeline, "_write", one_more)
            with pytest.raises(KeyboardInterrupt):
                rounded(model, tmp_path / "part", method=method, **more)
    made = rounded(model, tmp_path / "part", method=method, **more)
    assert made.rows == whole.rows
    for file in (tmp_path / "whole").iterdir():
        assert (tmp_path / "part" / file.name).read_bytes() == file.read_bytes(), file.name


def test_reports_that_cannot_be_read_are_done_without(tmp_path: Path) -> None:
    model = open_model(make_checkpoint(tmp_path / "model", seed=4))
    rounded(model, tmp_path / "work")
    for index, text in enumerate(("{", '{"key": {"for": "a test"}, "rows": [{"name": 1}, 3]}')):
        (tmp_path / "work" / f"layer-{index:05d}.json").write_text(text)
    assert {row.how for row in rounded(model, tmp_path / "work").rows} == {"as before"}
