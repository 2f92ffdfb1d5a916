"""Models are written part by part: memory does not grow with them."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from minicpm4.errors import CheckpointError
from minicpm4.model.source import OpenModel, open_model
from minicpm4.quantize.export import check_again, write_model
from minicpm4.quantize.gguf_export import GgufTypes, check_gguf, plan_gguf, write_gguf_model
from minicpm4.quantize.parts import Folded, Stored
from tests.fixtures.random_checkpoint import make_checkpoint


def gguf(model: OpenModel, out: Path) -> None:
    plan = plan_gguf(Stored(model.checkpoint, model.config), None, GgufTypes.parse(["q4_0"]))
    write_gguf_model(plan, out)
    check_gguf(plan, out, None)


def llama(model: OpenModel, out: Path) -> None:
    made = Folded(Stored(model.checkpoint, model.config))
    write_model(made, out, "llama", None)
    check_again(made, out)


@pytest.mark.parametrize("write", [gguf, llama])
def test_a_part_of_the_model_is_in_memory(write: Callable[[OpenModel, Path], None], tmp_path: Path) -> None:
    """Embeddings and head, or a layer, with what a tensor takes while it is rounded: not the model."""
    shape = {"hidden_size": 512, "intermediate_size": 1024, "head_dim": 128, "num_hidden_layers": 10}
    model = open_model(make_checkpoint(tmp_path / "model", seed=4, **shape))
    whole = sum(info.nbytes for info in model.checkpoint.tensors.values())
    tracemalloc.start()
    write(model, tmp_path / "out")
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 0.25 * whole, (most, whole)


@pytest.mark.parametrize("tie", [True, False])
def test_layers_are_counted_while_what_was_written_is_read(tmp_path: Path, tie: bool) -> None:
    """A head of its own was a layer more."""
    model = open_model(make_checkpoint(tmp_path / "model", seed=4, tie=tie))
    made, layers = Stored(model.checkpoint, model.config), model.config.num_hidden_layers
    plan = plan_gguf(made, None, GgufTypes())
    write_gguf_model(plan, tmp_path / "out.gguf")
    write_model(made, tmp_path / "out", "hf", None)
    file: list[tuple[int, int]] = []
    folder: list[tuple[int, int]] = []
    check_gguf(plan, tmp_path / "out.gguf", None, lambda *told: file.append(told))
    check_again(made, tmp_path / "out", lambda *told: folder.append(told))
    told = [(0, layers)] * (1 if tie else 2) + [(done + 1, layers) for done in range(layers)]
    assert file == folder == told


def test_end_tokens_that_have_no_key_are_told_without_a_text(tmp_path: Path) -> None:
    model = open_model(make_checkpoint(tmp_path / "model", seed=4))
    config = replace(model.config, eos_token_ids=(1, 2, 3, 7, 9))
    plan = plan_gguf(Stored(model.checkpoint, config), None, GgufTypes())
    write_gguf_model(plan, tmp_path / "out.gguf")
    check_gguf(plan, tmp_path / "out.gguf", None)
    assert ["token 7, token 9" in note for note in plan.notes] == [True]


def test_a_file_that_is_not_what_was_made_says_what_to_do(tmp_path: Path) -> None:
    model = open_model(make_checkpoint(tmp_path / "model", seed=4))
    plan = plan_gguf(Stored(model.checkpoint, model.config), None, GgufTypes())
    write_gguf_model(plan, tmp_path / "out.gguf")
    for change in ({"rms_norm_eps": 0.5}, {"rope_theta": 77.0}):
        plan.made = Stored(model.checkpoint, replace(model.config, **change))
        with pytest.raises(CheckpointError, match=r"again as .*\. nothing is kept of it"):
            check_gguf(plan, tmp_path / "out.gguf", None)
    other = open_model(make_checkpoint(tmp_path / "other", seed=5))
    plan = plan_gguf(Stored(other.checkpoint, other.config), None, GgufTypes())
    with pytest.raises(CheckpointError, match=r"not what it was made of\. nothing is kept of it"):
        check_gguf(plan, tmp_path / "out.gguf", None)
