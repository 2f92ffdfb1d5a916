"""The command `spec train`: wrong inputs are refused in one line; a small head is trained and drafts."""

from __future__ import annotations

import json
import re
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

from minicpm4 import LLM, SamplingParams
from minicpm4.cli import run
from minicpm4.train.draft_run import HeadRun
from tests.fixtures.random_checkpoint import make_checkpoint

SMALL = ["--prompts", "14", "--held-out", "4", "--answer-tokens", "16", "--batch", "4", "--epochs", "3"]
SMALL += ["--every", "2", "--validate", "4", "--threads", "1", "--draft-vocab", "200", "--rate", "3e-3"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("target") / "model", num_hidden_layers=4)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("corpus") / "talks.jsonl"
    rows = [{"messages": [{"role": "user", "content": f"What is {i} and {i}?"}]} for i in range(30)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def command(model: Path, corpus: Path, output: Path, *more: str) -> list[str]:
    return ["spec", "train", str(model), "--corpus", str(corpus), "-o", str(output), *SMALL, *more]


def terminated(line: list[str]) -> int:
    """The exit code of a training that gets SIGTERM in its first step."""
    one = HeadRun._one

    def told(self: Any) -> Any:
        signal.raise_signal(signal.SIGTERM)
        return one(self)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(HeadRun, "_one", told)
        return run(line)


def test_a_head_is_trained_goes_on_and_drafts(
    model: Path, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "head"
    assert run(command(model, corpus, output, "--until", "3")) == 0
    assert "the same command goes on from there" in capsys.readouterr().err
    assert not (output / "model.safetensors").exists()
    assert terminated(command(model, corpus, output, "--until", "6")) == 143  # not done, as it was told
    kept = {file: file.stat().st_mtime_ns for file in (output / "training/answers").iterdir()}
    assert run(command(model, corpus, output)) == 0
    told = capsys.readouterr()
    assert "going on after step 4" in told.err and "0 tokens differ" in told.out
    assert kept == {file: file.stat().st_mtime_ns for file in (output / "training/answers").iterdir()}
    lines = [json.loads(line) for line in (output / "training/metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(8))
    looks = [line for line in lines if "accept_length" in line]
    assert [line["step"] for line in looks] == [0, 4, 7]
    assert looks[-1]["validation"] < looks[0]["validation"]
    raw = json.loads((output / "config.json").read_text())
    assert raw["architectures"] == ["LlamaForCausalLMEagle3"] and raw["draft_vocab_size"] == 200
    with LLM(model, draft=f"eagle:{output}", draft_tokens=2, threads=1) as llm:
        out = llm.generate([3, 4, 5], SamplingParams(max_tokens=12, temperature=0.0, ignore_eos=True))
    assert out.metrics.draft_tokens > 0


def test_a_dry_run_tells_and_writes_nothing(
    model: Path, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(command(model, corpus, tmp_path / "head", "--dry-run")) == 0
    told = capsys.readouterr().out
    assert "eagle3 head" in told and "memory planned: " in told and " to train" in told
    assert not (tmp_path / "head").exists()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--form", "eagle1"], "--form 'eagle1' is unknown"),
        (["--prompts", "4"], "--prompts 4, less 4 held out, are fewer than a step's 4"),
        (["--prompts", "400"], "have passages for 30 prompts, --prompts asks for 400"),
        (["--draft-vocab", "101%"], "draft_vocab = '101%'|is more than"),
        (["--draft-vocab", "900"], "more than the 320 tokens"),
        (["--frspec-path", "nowhere.json"], "nowhere.json"),
        (["--form", "eagle2", "--frspec-path", "x.json"], "has the model's vocabulary"),
        (["--rounding", "int5"], "weight format 'int5' is not known"),
        (["--rounding", "int4-g128"], "the 192 columns of fc.weight do not fit|columns of"),
        (
            ["--answer-tokens", "8000", "--batch", "512", "--prompts", "900"],
            "training takes .* are available",
        ),
        (["--turns", "0"], "--turns 0 is outside"),
        (["--epochs", "1000", "--prompts", "16777216"], "are 4,194,303,000 steps"),
        (["--corpus", "nowhere.txt"], "nowhere.txt is neither a file nor a folder"),
    ],
)
def test_wrong_inputs_are_refused_in_one_line(
    model: Path,
    corpus: Path,
    tmp_path: Path,
    more: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(command(model, corpus, tmp_path / "head", *more)) == 2
    told = capsys.readouterr().err
    assert told.startswith("error: ") and told.count("\n") == 1 and re.search(message, told)
    assert not (tmp_path / "head").exists()


def test_what_is_there_already_is_not_written_over(
    model: Path, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("model.safetensors", "config.json"):  # the other one of a model in several files
        (tmp_path / name).write_bytes(b"x")
        assert run(command(model, corpus, tmp_path)) == 2
        assert "holds a model or head already" in capsys.readouterr().err
        (tmp_path / name).unlink()


def test_what_a_run_has_on_disk_is_not_asked_for_again(
    model: Path,
    corpus: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    output = tmp_path / "head"
    assert run(command(model, corpus, output, "--until", "2")) == 0
    there = sum(one.stat().st_size for one in (output / "training").rglob("*"))
    need = re.compile(r"take up to ([\d.]+) (kB|MB) more")
    usage = shutil.disk_usage(output)
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage._replace(free=0))
    assert run(command(model, corpus, output)) == 2
    amount, unit = need.search(capsys.readouterr().err).groups()  # type: ignore[union-attr]
    left = int((float(amount) + 0.1) * {"kB": 1e3, "MB": 1e6}[unit])
    assert there > 100_000
    assert run(command(model, corpus, tmp_path / "new")) == 2 and not (tmp_path / "new").exists()
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage._replace(free=left + 20_000))
    assert run(command(model, corpus, output, "--until", "3")) == 0


def test_other_settings_do_not_go_on(
    model: Path, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(command(model, corpus, tmp_path / "head", "--until", "2")) == 0
    assert run(command(model, corpus, tmp_path / "head", "--seed", "7")) == 2
    assert "other settings (seed: 0 -> 7)" in capsys.readouterr().err
    assert run(command(model, corpus, tmp_path / "head", "--temperature", "0.5")) == 2
    assert "temperature = 1.0, now it is 0.5" in capsys.readouterr().err
