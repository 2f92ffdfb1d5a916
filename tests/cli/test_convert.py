"""`minicpm4 convert`."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from minicpm4 import LLM
from minicpm4.cli import run
from minicpm4.evals import calibration_texts, conversion, fidelity
from minicpm4.formats.packing import pack_from_float, unpack
from minicpm4.formats.quant import QuantSpec
from minicpm4.model.source import open_model
from minicpm4.progress import silent
from tests.fixtures.random_checkpoint import make_checkpoint

GROUP = ["--group", "32"]
QUICK = [*GROUP, "--samples", "4", "--length", "128"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("convert") / "model", seed=9)


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("convert") / "text.txt"
    file.write_text(Path("examples/how_sqlite_is_tested.txt").read_text()[:3000])
    return file


def test_a_model_is_made_small_and_runs(
    model: Path, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, report, other = tmp_path / "small", tmp_path / "report.json", tmp_path / "other.txt"
    other.write_text(Path("examples/how_sqlite_is_tested.txt").read_text()[5000:8000])
    args = ["convert", str(model), str(out), *QUICK, "--calibration", str(text), "--test", str(other)]
    assert run([*args, "--override", "down_proj=int8-g64", "--json", str(report)]) == 0
    printed = capsys.readouterr().out
    assert "every value as it was rounded" in printed and "KL divergence" in printed
    assert "of 14 matrices, where it helps GPTQ" in printed
    found = json.loads(report.read_text())
    assert f"64 tokens, logits {found['logits_apart']:.1g} of the largest apart (0.0001 at most)" in printed
    assert 0 <= found["logits_apart"] < 1e-4
    same = found["fidelity"]
    assert 0 < same["flip_margin"] <= same["flip_margin_high"] and 0 < same["flips"] < 10_000
    assert f"nine in ten below {same['flip_margin_high']:.2f}" in printed
    formats = {row["name"].rsplit(".", 1)[1]: row["format"] for row in found["matrices"]}
    assert formats["down_proj"] == "int8-g64" and formats["q_proj"] == "int4-g32"
    assert found["tokens"] == 4 * 128 and 0 <= found["fidelity"]["kl_mean"] < 1
    assert found["nbytes"] < 0.8 * (model / "model.safetensors").stat().st_size
    assert not (tmp_path / "small.part").exists()
    assert run(["info", str(out)]) == 0 and "compressed-tensors-int4" in capsys.readouterr().out
    with LLM(str(out)) as llm:
        assert llm.generate([5, 9, 40]).token_ids


def test_without_text_the_model_writes_its_own(model: Path, tmp_path: Path) -> None:
    out, report = tmp_path / "small", tmp_path / "report.json"
    assert run(["convert", str(model), str(out), *QUICK, "--to", "gptq", "--json", str(report)]) == 0
    found = json.loads(report.read_text())
    assert found["calibration"] == "own" and found["tokens"] == 4 * 128
    with LLM(str(model)) as llm:
        texts = fidelity.own_texts(llm, 2, 40, seed=1)
        assert texts == fidelity.own_texts(llm, 2, 40, seed=1) and texts[0] != texts[1]
        assert all(len(one) == 40 for one in texts)


def test_a_model_in_bf16(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In floats unless said, without calibration; and from the GPTQ folder of another."""
    out, small = tmp_path / "floats", tmp_path / "small"
    assert run(["convert", str(model), str(out), "--weights", "bf16"]) == 0
    assert "16.00 bits a weight" in capsys.readouterr().out
    args = [*GROUP, "--method", "rtn", "--to", "gptq"]
    assert run(["convert", str(model), str(small), *args]) == 0
    assert run(["convert", str(small), str(tmp_path / "back"), "--weights", "bf16"]) == 0
    for folder in (out, tmp_path / "back"):
        said = json.loads((folder / "config.json").read_text())
        assert said["torch_dtype"] == "bfloat16" and "quantization_config" not in said
        with LLM(str(folder)) as llm:
            assert llm.generate([5, 9, 40]).token_ids


def test_embeddings_are_quantised_where_a_layout_has_a_place(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "small"
    args = [*GROUP, "--method", "rtn", "--to", "mlx", "--head", "int4-g64"]
    assert run(["convert", str(model), str(out), *args, "--override", "embed_tokens=int8-g32"]) == 0
    tensors = open_model(out).checkpoint.tensors
    assert str(tensors["model.embed_tokens.weight"].spec) == "int8-g32"
    assert str(tensors["lm_head.weight"].spec) == "int4-g64"
    assert not [name for name, one in tensors.items() if len(one.shape) == 2 and not one.spec.row.group]


def test_some_matrices_are_rounded_and_the_others_stay(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Formats by pattern were refused with weights as they are stored."""
    small, out, report = tmp_path / "small", tmp_path / "out", tmp_path / "report.json"
    assert run(["convert", str(model), str(small), *GROUP, "--method", "rtn"]) == 0
    args = ["--weights", "auto", "--override", "1.*down_proj=int8-g32", "--override", "lm_head=bf16"]
    assert run(["convert", str(small), str(out), *args, "--json", str(report)]) == 0
    rounded = {
        "model.layers.1.mlp.down_proj.weight": QuantSpec(kind="int8", group_size=32),
        "lm_head.weight": QuantSpec(kind="bf16"),
    }
    old, new = open_model(small).checkpoint, open_model(out).checkpoint
    for name, info in new.tensors.items():
        if len(info.shape) == 2:
            was = unpack(old.load(name))
            wanted = unpack(pack_from_float(was, rounded[name])) if name in rounded else was
            np.testing.assert_array_equal(unpack(new.load(name)), wanted, err_msg=name)
    assert str(new.tensors["model.layers.1.mlp.down_proj.weight"].spec) == "int8-g32"
    rows = json.loads(report.read_text())["matrices"]
    assert {row["name"] for row in rows} == {"lm_head", "model.layers.1.mlp.down_proj"}
    capsys.readouterr()
    for pattern, said in (("nothing=bf16", "no matrix"), ("down=int3-g32", "int3"), ("(=float", "regular")):
        other = ["convert", str(small), str(tmp_path / "other"), "--weights", "auto", "--override", pattern]
        assert run(other) == 2 and said in capsys.readouterr().err
    file = tmp_path / "m.gguf"
    assert run(["convert", str(small), str(file), "--override", "embed_tokens=int8-g32"]) == 0
    assert str(open_model(file).checkpoint.tensors["model.embed_tokens.weight"].spec) == "int8-g32"


def test_zero_points_go_along(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of Q4_1 any offsets: MLX has them, those of the others are zero points."""
    file, mlx = tmp_path / "m.gguf", tmp_path / "mlx"
    assert run(["convert", str(model), str(file), "--to", "gguf", "--gguf-type", "proj=q4_1"]) == 0
    assert run(["convert", str(file), str(mlx), "--to", "mlx", "--weights", "auto"]) == 0
    capsys.readouterr()
    for layout in ("gptq", "awq", "compressed-tensors"):
        out = tmp_path / layout
        assert run(["convert", str(file), str(out), "--to", layout, "--weights", "auto"]) == 2
        assert "offsets that are no zero points" in capsys.readouterr().err and not out.exists()
    one, two = open_model(file).checkpoint, open_model(mlx).checkpoint
    for name in (f"model.layers.{i}.self_attn.q_proj.weight" for i in range(2)):
        np.testing.assert_array_equal(unpack(one.load(name)), unpack(two.load(name)))


def test_nothing_is_kept_of_other_settings(model: Path, text: Path, tmp_path: Path) -> None:
    """What a run left behind is for the same command alone."""
    keys = []
    args = [str(model), tmp_path / "out"]

    def stop(*given: object) -> None:
        keys.append(given[6])
        raise KeyboardInterrupt

    patch = pytest.MonkeyPatch()
    with patch.context() as context:
        context.setattr(conversion, "quantize", stop)
        for method, file in (("gptq", text), ("gptq", text), ("p-gptq", text)):
            settings = conversion.QuantizeOptions(method=method, group=32)
            with pytest.raises(KeyboardInterrupt):
                conversion.convert(
                    args[0],
                    args[1],
                    settings,
                    "gptq",
                    conversion.Calibration(files=(file,), samples=2, length=64),
                    silent,
                )
    assert keys[0] == keys[1] != keys[2]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--weights", "int3"], "int3"),
        (["--method", "gpt"], "gptq"),
        (["--group", "128"], "do not fit"),
        (["--group", "0"], "a group of 0 is not a positive multiple"),
        (["--override", "[=float"], "Python's re"),
        (["--to", "ggml"], "gptq"),
        (["--head", "int8-g32", "--to", "gptq"], "lm_head"),
        (["--weights", "ternary", "--group", "64"], "ternary"),
        (["--override", "nothing=float"], "no matrix"),
        (["--weights", "bf16"], "--weights bf16 has no groups"),
        (["--to", "awq", "--weights", "int8"], "it holds int4"),
        (["--to", "marlin"], "its groups are of 128"),
        (["--to", "mlx", "--override", "embed_tokens=int8-g96"], "int8-g96"),
        (["--override", "down_proj"], "PATTERN=FORMAT"),
        (["--calibration", "absent.txt"], "absent.txt"),
        (["--method", "rtn", "--calibration", "README.md"], "leave --calibration out"),
        (["--calibration", "README.md", "--test", "README.md"], "another text"),
        (["--samples", "0"], "--samples"),
        (["--json", "absent/report.json"], "absent"),
    ],
)
def test_wrong_settings_are_named_before_any_work(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], said: str
) -> None:
    assert run(["convert", str(model), str(tmp_path / "out"), *QUICK, *more]) == 2
    error = capsys.readouterr().err
    assert said in error and "Traceback" not in error
    assert not (tmp_path / "out").exists() and not (tmp_path / "out.part").exists()


def test_a_folder_with_weights_is_not_written_over(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["convert", str(model), str(model), *QUICK]) == 2
    assert "holds weights already" in capsys.readouterr().err


def test_fidelity_of_a_model_with_itself_is_perfect(model: Path) -> None:
    texts = np.random.default_rng(1).integers(3, 300, (3, 50)).tolist()
    with LLM(str(model), max_batch=1) as one, LLM(str(model), max_batch=1) as two:
        same = fidelity.compare(one, two, texts)
        assert (same.nll_change, same.kl_mean, same.flips) == (0, 0, 0) and same.positions == 147
        losses = np.concatenate([one.nll(ids) for ids in texts])
        assert same.nll == pytest.approx(float(losses.mean()), rel=1e-5)


def test_windows_are_spread() -> None:
    assert fidelity.windows(range(100), 10, 3) == [list(range(i, i + 10)) for i in (0, 40, 90)]
    assert fidelity.windows(range(9), 10, 3) == []


def test_its_own_texts_are_written_once(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, write, round_all = [], calibration_texts._own, conversion.quantize

    def count(*given: object) -> list[list[int]]:
        asked.append(1)
        return write(*given)  # type: ignore[arg-type]

    def stop(*given: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(calibration_texts, "_own", count)
    monkeypatch.setattr(conversion, "quantize", stop)
    assert run(["convert", str(model), str(tmp_path / "out"), *QUICK]) == 130
    monkeypatch.setattr(conversion, "quantize", round_all)
    assert run(["convert", str(model), str(tmp_path / "out"), *QUICK]) == 0 and asked == [1]
    assert not (tmp_path / "out.part").exists()
    assert run(["convert", str(model), str(tmp_path / "other"), *QUICK, "--seed", "1"]) == 0 and asked == [
        1,
        1,
    ]


UNREAD = [
    (["--weights", "auto", "--samples", "4"], "--samples"),
    (["--weights", "auto", "--length", "128"], "--length"),
    (["--weights", "auto", "--seed", "0"], "--seed"),
    (["--method", "rtn", "--group", "32", "--samples", "4"], "--samples"),
    (["--method", "rtn", "--group", "32", "--length", "128"], "--length"),
    (["--method", "rtn", "--group", "32", "--seed", "1"], "--seed"),
    (["--group", "32", "--calibration", "README.md", "--seed", "1"], "--seed"),
]


def test_options_that_a_method_does_not_read_are_refused(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "out")
    assert run(["convert", str(model), out, *QUICK, "--skip-first", "2"]) == 2
    assert "--skip-first" in capsys.readouterr().err
    for more, name in UNREAD:
        assert run(["convert", str(model), out, *more]) == 2
        told = capsys.readouterr().err
        assert name in told and "leave it out" in told and not Path(out).exists()
    args = ["--to", "gptq", "--override", "layers.1.*down_proj=float"]
    assert run(["convert", str(model), out, *QUICK, *args]) == 2
    assert "compressed-tensors" in capsys.readouterr().err
