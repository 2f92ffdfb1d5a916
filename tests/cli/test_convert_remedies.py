"""`minicpm4 convert`: what is refused is refused before any work, and what is named instead is taken."""

from __future__ import annotations

import json
import re
from collections import namedtuple
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from minicpm4.cli import run
from minicpm4.evals import calibration_texts, conversion, model_writer
from tests.fixtures.random_checkpoint import make_checkpoint

SHAPES: dict[str, dict[str, Any]] = {
    "usual": {"dtype": "bfloat16"},
    "few rows": {"head_dim": 4, "num_attention_heads": 8, "num_key_value_heads": 1},
    "narrow": {"hidden_size": 96, "intermediate_size": 160, "head_dim": 24},
    "by 96": {"hidden_size": 96, "intermediate_size": 192, "head_dim": 24},
    "wide": {"hidden_size": 128, "intermediate_size": 256, "head_dim": 32},
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    return {name: make_checkpoint(folder / name, seed=9, **shape) for name, shape in SHAPES.items()}


@pytest.fixture
def no_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    def written(*_: Any) -> None:
        raise AssertionError("texts are written")

    monkeypatch.setattr(calibration_texts, "_own", written)


@pytest.mark.usefixtures("no_texts")
@pytest.mark.parametrize(
    ("shape", "words", "said", "instead"),
    [
        ("few rows", ["--to", "gptq"], "use --to compressed-tensors", ["--to", "compressed-tensors"]),
        (
            "few rows",
            ["--to", "awq"],
            "--override 'k_proj|v_proj=float'",
            ["--to", "awq", "--override", "k_proj|v_proj=float"],
        ),
        ("narrow", ["--to", "mlx"], "choose a group of 32\n", ["--to", "mlx", "--group", "32"]),
        ("narrow", ["--group", "64"], "choose a group of 32\n", ["--group", "32"]),
        (
            "by 96",
            ["--to", "mlx", "--group", "96"],
            "--weights int4 --group 32",
            ["--to", "mlx", "--group", "32"],
        ),
        (
            "narrow",
            ["--to", "marlin"],
            "use --to compressed-tensors --group 32",
            ["--to", "compressed-tensors", "--group", "32"],
        ),
        (
            "narrow",
            ["--override", "down_proj=int8-g64"],
            "choose a group of 32\n",
            ["--override", "down_proj=int8-g32"],
        ),
        (
            "by 96",
            ["--weights", "ternary", "--to", "hf"],
            "--override 'q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj=float'\n",
            [
                *["--weights", "ternary", "--to", "hf"],
                *["--override", "q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj=float"],
            ],
        ),
    ],
)
def test_what_is_named_instead_is_taken(
    models: dict[str, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    shape: str,
    words: list[str],
    said: str,
    instead: list[str],
) -> None:
    args = ["convert", str(models[shape]), str(tmp_path / "out")]
    assert run([*args, *words]) == 2
    assert said in capsys.readouterr().err and not list(tmp_path.iterdir())
    assert run([*args, *instead, "--method", "rtn"]) == 0


@pytest.mark.usefixtures("no_texts")
@pytest.mark.parametrize("layout", ["compressed-tensors", "gptq", "awq", "marlin", "mlx"])
@pytest.mark.parametrize("which", ["down_proj", "lm_head"])
def test_five_bits_have_no_place_but_in_gguf(
    models: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], layout: str, which: str
) -> None:
    args = ["convert", str(models["wide"]), str(tmp_path / "out"), "--to", layout]
    assert run([*args, "--override", f"{which}=int5-g32"]) == 2
    told = capsys.readouterr().err
    assert f"{which}.weight as int5-g32" in told and not list(tmp_path.iterdir())
    assert "int5 goes into gguf and hf" in told or (which == "lm_head" and "leave the head float" in told)


@pytest.mark.parametrize("layout", ["compressed-tensors", "gguf"])
def test_bits_that_are_too_few_are_told_with_those_that_it_takes(
    models: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    layout: str,
) -> None:
    """The model had written its texts before."""
    target = tmp_path / ("out.gguf" if layout == "gguf" else "out")
    args = [
        "convert",
        str(models["usual"]),
        str(target),
        "--weights",
        "int4",
        "--samples",
        "2",
        "--length",
        "64",
    ]
    with monkeypatch.context() as context:
        context.setattr(calibration_texts, "_own", None)
        assert run([*args, "--bits", "4"]) == 2
    told = re.search(r"ask for --bits ([0-9.]+) or more", capsys.readouterr().err)
    assert told is not None and not list(tmp_path.iterdir())
    assert run([*args, "--bits", told[1]]) == 0


@pytest.mark.usefixtures("no_texts")
def test_a_disk_that_is_too_small_is_told_before(
    models: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    free = namedtuple("free", "free")
    monkeypatch.setattr(conversion.shutil, "disk_usage", lambda place: free(20_000))
    assert run(["convert", str(models["usual"]), str(tmp_path / "new" / "out")]) == 2
    told = capsys.readouterr().err
    assert f"on the disk of {tmp_path}, 20 kB are free" in told and not list(tmp_path.iterdir())


@pytest.mark.usefixtures("no_texts")
def test_a_tokenizer_that_no_gguf_file_holds_is_told_before(
    models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from minicpm4.errors import TextError
    from minicpm4.text.model_text import ModelText

    def refuse(*_: Any) -> None:
        raise TextError("no word for it")

    monkeypatch.setattr(ModelText, "gguf_keys", refuse)
    assert run(["convert", str(models["usual"]), str(tmp_path / "out.gguf"), "--weights", "int4"]) == 2
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("odd", [None, -1, 1 << 20, 3.0, True])
def test_a_run_that_goes_on_says_so(
    models: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    odd: Any,
) -> None:
    """Texts that were kept and hold what is no token are written anew."""
    args = ["convert", str(models["usual"]), str(tmp_path / "out"), "--samples", "2", "--length", "64"]

    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as context:
        context.setattr(model_writer, "write_model", interrupted)
        assert run(args) == 130
    assert "going on" not in caplog.text
    part = tmp_path / "out.part"
    if odd is not None:
        kept = json.loads((part / "texts.json").read_text())
        kept["ids"][1][-1] = odd
        (part / "texts.json").write_text(json.dumps(kept))
    assert run(args) == 0
    told = caplog.text
    assert (f"going on: the model's own texts are kept in {part}" in told) == (odd is None)
    assert f"going on: 2 of 2 layers are kept in {part}" in told and not part.exists()


@pytest.mark.filterwarnings("ignore:overflow", "ignore:invalid value")
def test_a_model_without_finite_logits_is_told_as_such(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It was told that the written one is nan apart from it, and to try another layout."""
    folder = make_checkpoint(tmp_path / "model", seed=9)
    file = folder / "model.safetensors"
    data = bytearray(file.read_bytes())
    start = 8 + int.from_bytes(data[:8], "little")
    at = start + json.loads(data[8:start])["lm_head.weight"]["data_offsets"][0]
    data[at : at + 40] = np.full(10, 3e38, np.float32).tobytes()
    file.write_bytes(data)
    assert run(["convert", str(folder), str(tmp_path / "out"), "--weights", "auto", "--to", "hf"]) == 2
    told = capsys.readouterr().err
    assert "own logits are no finite numbers" in told and "original checkpoint" in told
    assert [one.name for one in tmp_path.iterdir()] == ["model"]


def test_what_kept_matrices_small_before_does_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of a GGUF file's Q4_1 `--weights auto` is refused by other layouts: `--to` has to go with it."""
    model = make_checkpoint(tmp_path / "model", seed=9)
    file, small = tmp_path / "m.gguf", tmp_path / "small"
    assert run(["convert", str(model), str(file), "--gguf-type", "q4_1"]) == 0
    assert run(["convert", str(model), str(small), "--method", "rtn", "--group", "32"]) == 0
    eight = ["--weights", "int8", "--method", "rtn"]
    for source, more, said, target in (
        (file, eight, "--weights auto --to gguf leaves them", "again.gguf"),
        (file, [*eight, "--to", "hf"], "whatever was rounded. --weights auto --to gguf leaves", "two.gguf"),
        (small, eight, ". --weights auto leaves them", "again"),
        (small, ["--to", "llama"], "--weights auto --to compressed-tensors leaves", "two"),
    ):
        capsys.readouterr()
        out = tmp_path / f"{target}-large"
        assert run(["convert", str(source), str(out), *more]) == 0
        assert said in capsys.readouterr().err
        assert run(["convert", str(source), str(tmp_path / target), "--weights", "auto"]) == 0
        assert "matrices of layers" not in capsys.readouterr().err


def test_sparse_attention_is_brought_back_as_the_note_says(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It said --sparse, which takes a value."""
    model = make_checkpoint(
        tmp_path / "model", seed=9, sparse_config={"topk": 32, "window_size": 1024, "dense_len": 64}
    )
    assert run(["convert", str(model), str(tmp_path / "m.gguf")]) == 0
    said = capsys.readouterr().err.partition("run it with ")[2].split()
    assert said[0] == "--sparse"
    shown = []
    for name, more in (("model", []), ("m.gguf", said)):
        assert run(["info", str(tmp_path / name), *more]) == 0
        shown.append([one for one in capsys.readouterr().out.splitlines() if "with these options" in one])
    assert shown[0] == shown[1] and "topk 32" in shown[0][0]


@pytest.mark.parametrize(
    ("out", "more"), [("out", ["--override", "nothing=float"]), ("out.gguf", ["--gguf-type", "nothing=q8_0"])]
)
def test_names_of_matrices_are_in_the_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], out: str, more: list[str]
) -> None:
    """It named an option that `info` has not."""
    model = make_checkpoint(tmp_path / "model", seed=9)
    assert run(["convert", str(model), str(tmp_path / out), *more]) == 2
    error = capsys.readouterr().err
    assert "names end in" in error and "down_proj" in error and "lm_head" in error


def test_rows_of_any_width_have_a_type(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shape = {"hidden_size": 48, "intermediate_size": 96, "num_attention_heads": 3, "num_key_value_heads": 3}
    model, file = make_checkpoint(tmp_path / "model", seed=9, **shape), str(tmp_path / "m.gguf")
    assert run(["convert", str(model), file, "--gguf-type", "q8_0"]) == 2
    assert "choose another type for all (bf16 takes any)" in capsys.readouterr().err
    assert run(["convert", str(model), file, "--gguf-type", "bf16"]) == 0


@pytest.mark.parametrize("stored", ["bfloat16", "int8"])
@pytest.mark.parametrize("layout", ["mlx", "compressed-tensors", "gptq", "gguf"])
def test_rotated_ends_are_told_as_the_floats_that_they_become(
    layout: str,
    stored: str,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """They were said to stay as they are stored, where the layout has a place for that."""
    shape = {"vocab_size": 2000, "num_hidden_layers": 1, "tie": True}
    model = make_checkpoint(tmp_path / "model", seed=3, model_type="llama", dtype="bfloat16", **shape)
    words = ["--to", layout, "--weights", "int4", "--group", "32", "--method", "rtn", "--rotate"]
    if stored == "int8":
        source, model = model, tmp_path / "small"
        rounds = ["--override", "embed_tokens=int8-g32"]
        assert run(["convert", str(source), str(model), "--to", "mlx", *words[2:-1], *rounds]) == 0
    out = tmp_path / ("out.gguf" if layout == "gguf" else "out")
    capsys.readouterr()
    assert run(["convert", str(model), str(out), *words]) == 0
    before, after = "\n".join(caplog.messages), "".join(capsys.readouterr())
    pattern = r"larger than its source: .* bec[ao]me (?:about )?([\d.]+) (kB|MB)"
    sizes = [re.search(pattern, told) for told in (before, after)]
    assert all(sizes) and len({one[2] for one in sizes if one}) == 1
    expected, written = (float(one[1]) for one in sizes if one)
    assert expected == pytest.approx(written, rel=0.02)  # MLX has an offset beside each scale
    for told in (before, after):
        assert told.count("--rotate turns them, which leaves floats") == 1 + (stored == "int8")
    assert "has no place for them as they were" not in before + after
    named = re.findall(r"--override '([^']+)'", before)
    assert bool(named) == (layout != "gptq" or stored == "int8")
    smaller = tmp_path / ("smaller.gguf" if layout == "gguf" else "smaller")
    more = [word for one in dict.fromkeys(named) for word in ("--override", one)]
    assert run(["convert", str(model), str(smaller), *words, *more]) == 0
