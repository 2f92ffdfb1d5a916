"""A stored prefix: what the original makes of the first tokens, in the scale of the model that is made."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from minicpm4.errors import ConfigError, UnsupportedError
from minicpm4.kernels.registry import exact_table, host_table
from minicpm4.model.source import OpenModel, open_model
from minicpm4.model.stored_prefix import FILE
from minicpm4.quantize import pipeline
from minicpm4.quantize.budget import Budget, choices_of, measure_costs
from minicpm4.quantize.export import check_again, write_model
from minicpm4.quantize.options import QuantizeOptions
from minicpm4.quantize.pipeline import quantize
from minicpm4.quantize.rounded import Rounded
from minicpm4.quantize.stored import original_prefix, prefix_ids
from minicpm4.text.model_text import ModelText
from minicpm4.text.template import ChatTemplate
from tests.fixtures.random_checkpoint import make_checkpoint
from tests.quantize.conftest import logits

PREFIX = (1, 9, 40)
IDS = [*PREFIX, 41, 200, 7, 7, 90]
KEY = {"for": "a test"}


def texts(count: int = 6, length: int = 60) -> list[list[int]]:
    rest = np.random.default_rng(3).integers(3, 320, (count, length)).tolist()
    return [[*PREFIX, *one] for one in rest]


def rounded(found: OpenModel, folder: Path, **options: Any) -> Rounded:
    settings = QuantizeOptions(**{"group": 32, "stored_prefix": PREFIX, **options})
    return quantize(found.checkpoint, found.config, settings, texts(), host_table(), folder, KEY)


def written(made: Rounded, folder: Path, layout: str = "hf") -> OpenModel:
    write_model(made, folder, layout, None, made.stored_prefix(PREFIX))
    check_again(made, folder)
    return open_model(folder)


@pytest.mark.parametrize("rotate", [False, True])
@pytest.mark.usefixtures("nothing_rounded")
def test_with_weights_of_floats_it_is_the_original(model: OpenModel, tmp_path: Path, rotate: bool) -> None:
    """Values are in the scale to which smoothing and rotation have brought v, and o multiplies them so."""
    found = written(rounded(model, tmp_path / "work", method="awq", rotate=rotate), tmp_path / "out")
    wanted = logits(model.path, IDS)
    np.testing.assert_allclose(logits(found.path, IDS), wanted, atol=2e-5 * np.abs(wanted).max())
    own = original_prefix(found.checkpoint, found.config, PREFIX, None, exact_table())
    assert own is not None and found.stored is not None
    np.testing.assert_allclose(found.stored.values, own.values, atol=2e-5 * np.abs(own.values).max())
    np.testing.assert_allclose(found.stored.keys, own.keys, atol=2e-5 * np.abs(own.keys).max())


@pytest.mark.parametrize("method", ["rtn", "awq", "s-gptq"])
def test_it_takes_the_place_of_what_rounded_weights_give(tmp_path: Path, method: str) -> None:
    model = open_model(make_checkpoint(tmp_path / "model", seed=2))
    made = rounded(model, tmp_path / "work", method=method)
    found = written(made, tmp_path / "out", "compressed-tensors")
    wanted, own = logits(model.path, IDS), logits(found.path, IDS)
    (found.path / FILE).unlink()
    other = logits(found.path, IDS)
    assert np.abs(own - other)[3:].max() > 1e-3 * np.abs(other).max()
    assert np.square(own - wanted).mean() < np.square(other - wanted).mean()
    alone = [5, *IDS]
    np.testing.assert_array_equal(
        logits(found.path, alone), logits(written(made, tmp_path / "again").path, alone)
    )


def test_a_killed_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = open_model(make_checkpoint(tmp_path / "model", seed=2))
    whole = rounded(model, tmp_path / "whole").stored_prefix(PREFIX)
    write, done = pipeline._write, []

    def stop(*given: Any) -> None:
        if done:
            raise KeyboardInterrupt
        done.append(write(*given))

    monkeypatch.setattr(pipeline, "_write", stop)
    with pytest.raises(KeyboardInterrupt):
        rounded(model, tmp_path / "work")
    monkeypatch.setattr(pipeline, "_write", write)
    again = rounded(model, tmp_path / "work")
    assert whole is not None and whole.same(again.stored_prefix(PREFIX))
    assert again.layer(0).keys() == {name for name in model.checkpoint.tensors if ".layers.0." in name}


def test_statistics_leave_its_positions_out() -> None:
    assert QuantizeOptions(method="gptq", stored_prefix=PREFIX).skip == 3
    assert QuantizeOptions(method="p-gptq", stored_prefix=PREFIX).skip == 4
    with pytest.raises(ConfigError, match="65 tokens is too long"):
        QuantizeOptions(stored_prefix=tuple(range(65)))


def test_budgets_know_of_it(tmp_path: Path) -> None:
    model = open_model(make_checkpoint(tmp_path / "model", seed=2))
    options = QuantizeOptions(group=32, bits=6.5)
    place = Budget(tmp_path, KEY, "hf")
    shapes = {name: one.shape for name, one in model.checkpoint.tensors.items() if len(one.shape) == 2}
    choices, costs = choices_of(options, model.config, shapes, place), []
    own = original_prefix(model.checkpoint, model.config, PREFIX, None, host_table())
    assert own is not None
    for stored in (None, own, replace(own, values=own.values * 4)):
        found = measure_costs(
            model.checkpoint, model.config, choices, None, texts(), host_table(), None, stored
        )
        costs.append(np.array(list(found.values())))
    assert np.abs(costs[1] / costs[0] - 1).max() > 1e-3 and np.abs(costs[2] / costs[1] - 1).max() > 0.05


CHATS = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>{% endfor %}"


@pytest.mark.parametrize(
    ("template", "said", "wanted"),
    [
        (CHATS, "auto", "<|im_start|>"),
        (
            "<|im_start|>system\nBe kind.<|im_end|>" + CHATS,
            "auto",
            "<|im_start|>system\nBe kind.<|im_end|><|im_start|>",
        ),
        (CHATS, "<|im_start|>user\n", "<|im_start|>user\n"),
    ],
)
def test_its_tokens(tmp_path: Path, template: str, said: str, wanted: str) -> None:
    text = ModelText(make_checkpoint(tmp_path / "model"))
    text = ModelText.of(text.tokenizer, ChatTemplate(template))
    ids = prefix_ids(text, said, 320)
    assert text.tokenizer.decode(ids, skip_special_tokens=False) == "<s>" + wanted
    with pytest.raises(ConfigError, match="may have 64"):
        prefix_ids(text, "a" * 70, 320)
    with pytest.raises(ConfigError, match="has no token"):
        prefix_ids(ModelText.of(text.tokenizer), "auto", 320)


def test_rotary_positions_that_a_longer_context_changes_are_refused(tmp_path: Path) -> None:
    long = {"rope_type": "longrope", "short_factor": [1.0] * 8, "long_factor": [2.0] * 8}
    long |= {"original_max_position_embeddings": 64}
    for scaling in (long, {"rope_type": "dynamic", "factor": 2.0}):
        found = open_model(make_checkpoint(tmp_path / scaling["rope_type"], rope_scaling=scaling))
        with pytest.raises(UnsupportedError, match="others in a longer context"):
            rounded(found, tmp_path / "work", method="rtn")
    same = make_checkpoint(tmp_path / "same", rope_scaling=long | {"long_factor": [1.0] * 8})
    assert written(rounded(open_model(same), tmp_path / "done", method="rtn"), tmp_path / "out").stored
