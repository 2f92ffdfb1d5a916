"""Formats by matrix within a budget: costs are those that rounding has, bits go where they save most."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from minicpm4 import LLM
from minicpm4.cli import run
from minicpm4.errors import ConfigError
from minicpm4.formats import open_checkpoint
from minicpm4.formats.hf_write import write_folder
from minicpm4.formats.packing import pack_from_float, unpack
from minicpm4.formats.quant import QuantSpec
from minicpm4.formats.tensor_source import array_source, checkpoint_source
from minicpm4.kernels.registry import exact_table
from minicpm4.model.source import OpenModel, open_model
from minicpm4.quantize.budget import Budget, allot, choices_of, measure_costs
from minicpm4.quantize.divergence import kullback_leibler, log_probabilities
from minicpm4.quantize.options import QuantizeOptions
from minicpm4.quantize.rotate import Rotation
from tests.fixtures.random_checkpoint import make_checkpoint

G64, G32, INT8 = (QuantSpec(kind=kind, group_size=size) for kind, size in
                  (("int4", 64), ("int4", 32), ("int8", 64)))  # fmt: skip
FLOATS = Budget(Path(), {}, "hf")
TEXTS = np.random.default_rng(5).integers(3, 320, (3, 40)).tolist()
EXACT: dict[str, Any] = {"kv": "float32", "backend": "ref"}


def test_bits_go_where_they_save_most() -> None:
    """Three matrices of 64 x 64: 2,176, 2,304 and 4,224 bytes in the three formats."""
    shapes = dict.fromkeys("abc", (64, 64))
    choices = {name: [G64, G32, INT8] for name in "abc"}
    costs = {"a": [10.0, 9.9, 0.0], "b": [2.0, 1.0, 0.0], "c": [0.5, 0.45, 0.0]}

    def chosen(nbytes: int) -> dict[str, QuantSpec]:
        return allot(costs, choices, shapes, 0, 8 * nbytes / (3 * 64 * 64))

    least = 3 * 2176
    assert chosen(least) == dict.fromkeys("abc", G64)
    # For a byte b saves most in groups of 32, and a more in int8 than in groups of 32, which it skips.
    assert chosen(least + 128) == {"a": G64, "b": G32, "c": G64}
    assert chosen(least + 128 + 2048) == {"a": INT8, "b": G32, "c": G64}
    assert chosen(least + 3 * 2048) == dict.fromkeys("abc", INT8)
    for nbytes in range(least, least + 3 * 2048, 500):
        took = sum({G64: 2176, G32: 2304, INT8: 4224}[spec] for spec in chosen(nbytes).values())
        assert took <= nbytes
    with pytest.raises(ConfigError, match=r"take 4\.25 bits a weight in their smallest formats, 4\.2 are"):
        allot(costs, choices, shapes, 0, 4.2)


def test_what_has_no_choice_counts() -> None:
    shapes = {"a": (64, 64), "head": (64, 64)}
    choices, costs = {"a": [G64, G32, INT8]}, {"a": [1.0, 0.9, 0.0]}
    assert allot(costs, choices, shapes, 2 * 64 * 64, 12.24) == {"a": INT8}
    assert allot(costs, choices, shapes, 2 * 64 * 64, 12.12) == {"a": G32}


@pytest.mark.parametrize(
    "shape", [{}, {"tie": True}, {"model_type": "qwen2"}], ids=["minicpm", "tied", "qwen2"]
)
def test_costs_are_the_divergences_of_rounded_models(tmp_path: Path, shape: dict[str, Any]) -> None:
    model = open_model(make_checkpoint(tmp_path / "model", seed=6, **shape))
    choices = choices_for(model)
    costs = measure_costs(model.checkpoint, model.config, choices, None, TEXTS, exact_table())
    assert set(costs) == set(choices)
    parts = [f"model.layers.{i}." for i in range(2)] + ["model.embed_tokens"]
    for part in [*parts, *([] if model.config.tie_word_embeddings else ["lm_head"])]:
        names = [name for name in costs if name.startswith(part)]
        wanted = divergence(model, write_rounded(model, tmp_path / part, names, choices))
        assert sum(costs[name][0] for name in names) == pytest.approx(wanted, rel=2e-2)
    for first, finer, five, eight in costs.values():
        assert first > finer > 3 * five > 30 * eight > 0


def test_within_a_layer_costs_follow_what_each_matrix_moves(tmp_path: Path) -> None:
    """A matrix that lies on the grid already costs nothing."""
    folder = make_checkpoint(tmp_path / "model", seed=6)
    model = open_model(folder)
    name = "model.layers.0.mlp.down_proj.weight"
    values = np.where(unpack(model.checkpoint.load(name)) > 0, np.float32(-0.125), np.float32(0))
    sources = {one: checkpoint_source(model.checkpoint, one) for one in model.checkpoint.tensors}
    (tmp_path / "even").mkdir()
    write_folder(
        tmp_path / "even", model.config, sources | {name: array_source(values)}, beside=model.text().files()
    )
    even = open_model(tmp_path / "even")
    costs = measure_costs(even.checkpoint, even.config, choices_for(even), None, TEXTS, exact_table())
    layer = {one: cost[0] for one, cost in costs.items() if one.startswith("model.layers.0.")}
    assert layer[name] == 0 < min(cost for one, cost in layer.items() if one != name)


def test_a_rotated_model_has_a_head_to_choose_for(tmp_path: Path) -> None:
    model = open_model(make_checkpoint(tmp_path / "model", seed=6, tie=True))
    options = QuantizeOptions(bits=6, rotate=True)
    rotation, after = Rotation(model.config), Rotation.config(model.config)
    choices = choices_of(options, model.config, shapes_of(after), FLOATS)
    costs = measure_costs(model.checkpoint, model.config, choices, rotation, TEXTS, exact_table())
    assert "lm_head.weight" in costs and all(each[0] > 0 for each in costs.values())


def choices_for(model: OpenModel) -> dict[str, list[QuantSpec]]:
    return choices_of(QuantizeOptions(bits=6), model.config, shapes_of(model.config), FLOATS)


def shapes_of(config: Any) -> dict[str, tuple[int, int]]:
    from minicpm4.formats.names import expected_tensors

    return {name: shape for name, shape in expected_tensors(config).items() if len(shape) == 2}


def write_rounded(model: OpenModel, folder: Path, names: list[str], choices: Any) -> Path:
    """The model with the matrices ``names`` rounded to their first format."""
    sources = {one: checkpoint_source(model.checkpoint, one) for one in model.checkpoint.tensors}
    for name in names:
        values = unpack(pack_from_float(unpack(model.checkpoint.load(name)), choices[name][0]))
        sources[name] = array_source(values)
    folder.mkdir()
    write_folder(folder, model.config, sources, beside=model.text().files())
    return folder


def divergence(model: OpenModel, other: Path) -> float:
    with LLM(str(model.path), **EXACT) as before, LLM(str(other), **EXACT) as after:
        pairs = [[log_probabilities(llm.logits(ids)) for llm in (before, after)] for ids in TEXTS]
    return float(np.concatenate([kullback_leibler(*pair) for pair in pairs]).mean())


@pytest.mark.parametrize(("target", "more"), [("out", ["--to", "mlx"]), ("out.gguf", ["--weights", "int4"])])
def test_a_budget_is_kept_and_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], target: str, more: list[str]
) -> None:
    model, report = make_checkpoint(tmp_path / "model", seed=6), tmp_path / "report.json"
    words = ["--bits", "6.5", "--samples", "8", "--length", "64", "--calibration", "README.md", *more]
    assert run(["convert", str(model), str(tmp_path / target), *words, "--json", str(report)]) == 0
    told = json.loads(report.read_text())
    assert 6.2 < told["bits"] <= 6.5
    formats = {row["format"] for row in told["matrices"]}
    assert formats >= ({"int5-g32"} if target.endswith("gguf") else {"int4-g32", "int8-g64"})
    assert "matrices in" in capsys.readouterr().out
    found = open_checkpoint(tmp_path / target).tensors
    for row in told["matrices"]:
        kind = found[f"{row['name']}.weight"].spec.kind
        assert kind == row["format"][:4]


def test_an_override_is_not_up_for_choice(tmp_path: Path) -> None:
    model, report = make_checkpoint(tmp_path / "model", seed=6), tmp_path / "report.json"
    words = ["--bits", "7", "--samples", "8", "--length", "64", "--calibration", "README.md", "--to", "mlx"]
    words += ["--override", "down_proj=int4-g64", "--json", str(report)]
    assert run(["convert", str(model), str(tmp_path / "out"), *words]) == 0
    rows = json.loads(report.read_text())["matrices"]
    assert {row["format"] for row in rows if "down_proj" in row["name"]} == {"int4-g64"}
    assert "int8-g64" in {row["format"] for row in rows}


def test_an_interrupted_run_has_chosen_already(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from minicpm4.evals import conversion
    from minicpm4.quantize import budget

    model = make_checkpoint(tmp_path / "model", seed=6)
    words = ["--bits", "6.5", "--samples", "8", "--length", "64", "--calibration", "README.md", "--to", "mlx"]
    quantize = conversion.quantize

    def killed(*_: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(conversion, "quantize", killed)
    assert run(["convert", str(model), str(tmp_path / "out"), *words]) != 0
    # What it has chosen is looked at: a format of a matrix that was not to choose from is no choice.
    file = tmp_path / "out.part" / "formats.json"
    chosen = file.read_text()
    monkeypatch.setattr(budget, "measure_costs", killed)
    for was, odd in (("int4-g64", "int2-g64"), ("layers.0.", "layers.7."), ("layers.0.mlp.up_proj", "x")):
        file.write_text(chosen.replace(was, odd))
        assert file.read_text() != chosen
        assert run(["convert", str(model), str(tmp_path / "out"), *words]) == 130
    file.write_text(chosen)
    monkeypatch.setattr(conversion, "quantize", quantize)
    assert run(["convert", str(model), str(tmp_path / "out"), *words]) == 0
    assert not (tmp_path / "out.part").exists()


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--to", "gptq"], "gptq holds all matrices in one format, --bits chooses one for each"),
        (["--method", "rtn"], "use --weights int4 and a method that is calibrated"),
        (
            ["--weights", "int8"],
            "--bits chooses between int4 and int8 by what text shows, here with --weights int8 and --method",
        ),
        (["--to", "mlx", "--bits", "4.3"], "bits a weight in their smallest formats, 4.3 are asked for"),
        (["--bits", "3"], "--bits 3.0 is outside 4 to 16"),
        (["--weights", "auto"], "weights stay as they are stored, --bits is for those"),
    ],
)
def test_budgets_that_cannot_be(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], said: str
) -> None:
    model = make_checkpoint(tmp_path / "model", seed=6)
    words = ["--bits", "6"] if "--bits" not in more else []
    words += [] if {"rtn", "auto"} & set(more) else ["--calibration", "README.md"]
    assert run(["convert", str(model), str(tmp_path / "out"), *words, *more]) == 2
    assert said in capsys.readouterr().err and not (tmp_path / "out").exists()


QUICK = ["--samples", "8", "--length", "64", "--calibration", "README.md"]


def bits_of(model: Path, out: Path, bits: float, *more: str) -> float:
    report = out.with_suffix(".json")
    words = [*QUICK, "--bits", str(bits), "--json", str(report), *more]
    assert run(["convert", str(model), str(out), *words]) == 0
    return float(json.loads(report.read_text())["bits"])


@pytest.mark.parametrize(
    ("bits", "more"),
    [
        (9, ["--to", "mlx", "--override", "down_proj=float"]),
        (9, ["--to", "mlx", "--override", "down_proj=float", "--method", "gptq"]),
        (9, ["--to", "mlx", "--override", "q_proj=float"]),
        (8.5, ["--to", "mlx", "--override", "1.*q_proj=float", "--rotate"]),
        (6.5, ["--to", "gguf", "--weights", "int4", "--group", "64"]),
        (6.5, ["--to", "gguf", "--weights", "int4", "--override", "down_proj=int8-g64"]),
    ],
)
def test_what_is_left_as_it_is_counts_as_it_is_written(tmp_path: Path, bits: float, more: list[str]) -> None:
    """Of a source in bf16; it was counted as stored, and written in float32. GGUF has groups of 32 alone."""
    model = make_checkpoint(tmp_path / "model", seed=6, dtype="bfloat16")
    out = tmp_path / ("out.gguf" if "gguf" in more else "out")
    assert bits - 1.5 < bits_of(model, out, bits, *more) <= bits + 0.005


def test_embeddings_that_become_floats_count_as_those(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of Q8_0, which compressed-tensors writes as float32: they were counted as of 16 bits."""
    model, file = make_checkpoint(tmp_path / "model", seed=6), tmp_path / "m.gguf"
    assert run(["convert", str(model), str(file), "--gguf-type", "embed|lm_head=q8_0"]) == 0
    words = [*QUICK, "--bits", "4", "--to", "compressed-tensors"]
    assert run(["convert", str(file), str(tmp_path / "less"), *words]) == 2
    told = re.search(r"take ([0-9.]+) bits a weight in their smallest formats", capsys.readouterr().err)
    assert told is not None
    least = float(told[1])
    assert least < bits_of(file, tmp_path / "out", least + 0.3, "--to", "compressed-tensors") < least + 0.305


@pytest.mark.parametrize("done", ["quantize", "write_model"])
def test_what_was_chosen_for_one_layout_is_not_taken_for_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], done: str
) -> None:
    """int5 of a folder of floats, embeddings and all, went on into layouts that have no place for them."""
    from minicpm4.evals import conversion, model_writer

    model, out = make_checkpoint(tmp_path / "model", seed=6), tmp_path / "out"
    words = ["convert", str(model), str(out), *QUICK, "--bits", "6.5"]

    def killed(*_: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as context:
        context.setattr(model_writer if done == "write_model" else conversion, done, killed)
        assert run([*words, "--to", "hf"]) == 130
    part = tmp_path / "out.part"
    assert "int5-g32" in (part / "formats.json").read_text()
    capsys.readouterr()
    code = run([*words, "--to", "mlx"])
    if done == "quantize":  # no layer is kept: it is chosen again
        assert code == 0 and not part.exists()
        return
    assert code == 2
    told = capsys.readouterr().err
    assert "layers of another conversion (int4 s-gptq hf): it had layout 'hf', this has 'mlx'" in told
    assert "with --bits its --to, too" in told
    assert run([*words, "--to", "hf"]) == 0


def test_the_formats_are_told_by_matrices(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Patterns were counted, and as many matrices named."""
    model = make_checkpoint(tmp_path / "model", seed=6)
    words = [
        *QUICK,
        "--bits",
        "8",
        "--to",
        "mlx",
        "--override",
        "proj=int4-g32",
        "--override",
        "lm_head=bf16",
    ]
    assert run(["convert", str(model), str(tmp_path / "out"), *words]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "1 matrix in bf16, 14 matrices in int4-g32, 1 matrix in int8-g64" in said
