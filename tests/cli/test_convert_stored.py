"""`minicpm4 convert --stored-prefix`: where it goes, and where it has no place."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from minicpm4 import LLM
from minicpm4.cli import run
from minicpm4.errors import ConfigError, UnsupportedError
from minicpm4.evals import conversion
from minicpm4.evals.calibration_texts import Calibration
from minicpm4.model.source import open_model
from minicpm4.model.stored_prefix import FILE
from minicpm4.train.check import start_of
from tests.fixtures.random_checkpoint import make_checkpoint
from tests.train.test_check import recipe

PREFIX = "<|im_start|>"
QUICK = ["--group", "32", "--samples", "4", "--length", "128", "--stored-prefix", PREFIX]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("stored") / "model", seed=9)


@pytest.fixture(scope="module")
def small(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("stored") / "small"
    args = ["--group", "32", "--method", "rtn", "--stored-prefix", PREFIX]
    assert run(["convert", str(model), str(out), *args]) == 0
    return out


def test_texts_begin_with_it_and_it_is_told(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, report, text = tmp_path / "out", tmp_path / "report.json", tmp_path / "text.txt"
    text.write_text(Path("examples/how_sqlite_is_tested.txt").read_text()[:3000])
    args = ["convert", str(model), str(out), *QUICK, "--test", str(text), "--json", str(report)]
    assert run(args) == 0  # calibrated on what the model writes behind it
    printed = capsys.readouterr().out
    assert "2 tokens, with which texts" in printed and "every value as it was rounded" in printed
    ids = list(open_model(out).text().encode(PREFIX))
    found = json.loads(report.read_text())
    assert found["options"]["stored_prefix"] == ids and found["tokens"] == 4 * 128
    assert run(["info", str(out)]) == 0
    assert f'stored prefix      2 tokens: "<s>{PREFIX}"' in capsys.readouterr().out
    sums = json.loads((out / "checksums.json").read_text())
    assert set(sums["files"]) == {"model.safetensors", FILE}
    with LLM(out) as llm:
        assert llm.chat([{"role": "user", "content": "a"}]).token_ids


def test_calibration_windows_begin_with_it(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def stop(*given: object) -> None:
        seen.append((given[3], given[6]))
        raise KeyboardInterrupt

    monkeypatch.setattr(conversion, "quantize", stop)
    text, ids = tmp_path / "text.txt", open_model(model).text().encode(PREFIX)
    text.write_text(Path("examples/how_sqlite_is_tested.txt").read_text()[:3000])
    for more in (QUICK, QUICK[:-2]):
        assert run(["convert", str(model), str(tmp_path / "out"), *more, "--calibration", str(text)]) == 130
    (texts, key), (plain, other) = seen
    assert all(one[:2] == ids and len(one) == 128 for one in texts) and key != other
    assert key["options"]["stored_prefix"] == ids and "stored_prefix" not in other["options"]
    assert all(one[0] == ids[0] and one[1] != ids[1] for one in plain)


def test_weights_that_stay_take_it_along(
    small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stored = open_model(small).stored
    assert stored is not None
    for layout in ("gptq", "hf", "mlx"):
        out = tmp_path / layout
        assert run(["convert", str(small), str(out), "--to", layout, "--weights", "auto"]) == 0
        assert stored.same(open_model(out).stored)
    assert "left out" not in capsys.readouterr().err
    for layout in ("gguf", "llama"):
        out = tmp_path / ("m.gguf" if layout == "gguf" else layout)
        assert run(["convert", str(small), str(out), "--to", layout]) == 0
        assert f"stored prefix of 2 tokens is left out: {layout} has no" in capsys.readouterr().err
        assert open_model(out).stored is None


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--to", "gguf"], "gguf has no place for a stored prefix"),
        (["--to", "llama", "--weights", "int4"], "llama has no place for a stored prefix"),
        (["--to", "marlin", "--group", "128"], "marlin"),
        (["--weights", "auto"], "leave --stored-prefix out"),
        (["--stored-prefix", "a" * 70], "it may have 64"),
        (["--stored-prefix", "a" * 63, "--length", "64"], "leaves no text"),
    ],
)
def test_where_it_has_no_place(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], said: str
) -> None:
    given, out = QUICK[-2:] if "auto" in more else QUICK, "out.gguf" if "gguf" in more else "out"
    given = [*given, "--weights", "int4"] if "gguf" in more else given
    assert run(["convert", str(model), str(tmp_path / out), *given, *more]) == 2
    assert said in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_plain_rotary_positions_are_other_ones(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scaled = make_checkpoint(tmp_path / "scaled", rope_scaling={"rope_type": "linear", "factor": 2.0})
    args = ["convert", str(scaled), str(tmp_path / "out"), *QUICK]
    assert run([*args, "--plain-rope"]) == 2 and "rotary positions" in capsys.readouterr().err
    assert run(args) == 0
    again = ["convert", str(tmp_path / "out"), str(tmp_path / "plain"), "--weights", "auto", "--plain-rope"]
    capsys.readouterr()
    assert run(again) == 0 and "--plain-rope has no place for it" in capsys.readouterr().err
    assert open_model(tmp_path / "plain").stored is None


def test_who_knows_none_refuses_it(small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["convert", str(small), str(tmp_path / "out"), "--weights", "int8", "--group", "32"]) == 2
    assert "a conversion that rounds its weights again" in capsys.readouterr().err
    with pytest.raises(UnsupportedError, match="a training run cannot take along"):
        start_of(recipe(model={"start": str(small)}, tokenizer={}))
    with pytest.raises(ConfigError, match="weights stay as they are stored"):
        conversion.convert(str(small), tmp_path / "o", None, "hf", Calibration(), np.errstate, stored=PREFIX)


def test_without_texts_none_begin_with_it(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = ["--group", "32", "--method", "rtn", "--stored-prefix", PREFIX]
    assert run(["convert", str(model), str(tmp_path / "out"), *args]) == 0
    told = capsys.readouterr().out
    assert "stored prefix" in told and "with which" not in told
