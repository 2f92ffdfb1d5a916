"""Runs go on as if they had never been cut; stages, rounding and the guard do what the recipe says."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from minicpm4 import LLM
from minicpm4.errors import TrainingError
from minicpm4.train import checkpoint
from minicpm4.train.export import export
from minicpm4.train.metrics import read_metrics
from minicpm4.train.saved import latest, saved
from tests.fixtures.byte_tokenizer import write_tokenizer
from tests.train.runs import corpus, recipe, runner, stage

torch.set_num_threads(1)
STAGES = (
    stage("stable", warmup=2),
    stage("long", attention="sparse", steps=4, decay={"kind": "linear", "steps": 2}),
    stage("qat", steps=4, rounding={"self_attn.*": "ternary-g32", "mlp.*": "ternary-g64"}, warmup=1, mtp=0.3),
)


def losses(run: Path) -> list[float]:
    return [line["loss"] for line in read_metrics(run)]


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_a_resumed_run_is_the_unbroken_one_to_the_bit(tmp_path: Path, kind: str) -> None:
    made, data = recipe(*STAGES, optimiser={"kind": kind}), corpus(tmp_path / "data")
    runner(made, tmp_path / "whole", data).run()
    for until in (3, 7, 8, 13, None):
        runner(made, tmp_path / "cut", data).run(until)
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")
    one, other = (latest(tmp_path / name) for name in ("cut", "whole"))
    assert one is not None and other is not None
    for file in ("model/model.safetensors", "optimiser.safetensors", "mtp/model.safetensors"):
        assert (one.folder / file).read_bytes() == (other.folder / file).read_bytes(), file


def test_the_loss_falls_and_is_drawn(tmp_path: Path) -> None:
    made = recipe(stage(steps=40, warmup=4), validate=20)
    end = runner(made, tmp_path / "run", corpus(tmp_path / "data")).run()
    found = losses(tmp_path / "run")
    assert end.finished and len(found) == 40
    assert found[0] > np.log(96) - 0.5 and found[-1] < 0.7 * np.log(96)
    assert [line["step"] for line in read_metrics(tmp_path / "run") if "validation" in line] == [20, 40]
    assert "<svg" in (tmp_path / "run" / "loss.svg").read_text()


def test_micro_batches_change_nothing(tmp_path: Path) -> None:
    data = corpus(tmp_path / "data")
    for size in (32, 128):
        runner(recipe(stage(micro_tokens=size, mtp=0.3)), tmp_path / str(size), data).run()
    # Other borders, hence other pieces, only where 32 tokens end; the first step's weights are equal.
    one, other = losses(tmp_path / "32"), losses(tmp_path / "128")
    assert one[0] == pytest.approx(other[0], abs=0.1)


def test_where_a_run_is_told_to_end_it_is_saved(tmp_path: Path) -> None:
    made, data = recipe(stage(steps=6), checkpoints={"every": 4}), corpus(tmp_path / "data")
    assert runner(made, tmp_path / "run", data).run(3).step == 3
    again = runner(made, tmp_path / "run", data)
    assert again.step == 3 and again.run(3).step == 3  # nothing to do: the checkpoint stays as it is
    assert again.run().finished


def test_old_checkpoints_go_but_stages_ends_stay(tmp_path: Path) -> None:
    runner(recipe(*STAGES), tmp_path / "run", corpus(tmp_path / "data")).run()
    assert [one.step for one in saved(tmp_path / "run")] == [6, 8, 10, 12, 14]  # 8: before a decay


def test_an_exported_ternary_model_has_the_trainers_logits(tmp_path: Path) -> None:
    made = recipe(*STAGES)
    done = runner(made, tmp_path / "run", corpus(tmp_path / "data"))
    done.run()
    model, ids = done.session.model, np.arange(5, 60, dtype=np.int32)
    model.mode = type(model.mode)(rounding=model.mode.rounding)  # dense: the engine decides by itself
    batch = type(
        "Batch", (), {"ids": ids, "positions": np.arange(55, dtype=np.int32), "cu_rows": np.array([0, 55])}
    )
    with torch.no_grad():
        wanted = model.logits(model(batch)).numpy()
    export(model, tmp_path / "out", tokenizer=_tokenizer(tmp_path))
    llm = LLM(str(tmp_path / "out"), attention="dense", backend="ref", kv="float32")
    assert np.abs(llm.logits(ids.tolist()) - wanted).max() < 1e-3 * np.abs(wanted).max()


def test_what_is_not_finite_never_reaches_the_weights(tmp_path: Path) -> None:
    done = runner(
        recipe(stage(steps=30), checkpoints={"every": 2000}), tmp_path / "run", corpus(tmp_path / "data")
    )
    done.run(2)
    before = {name: t.clone() for name, t in done.session.model.state_dict().items()}
    with torch.no_grad():
        done.session.model.get_parameter("model.norm.weight")[0] = float("nan")
    with pytest.raises(TrainingError, match="step 12: loss is nan"):
        done.run()
    after = done.session.model.state_dict()
    assert all(torch.equal(after[name], t) for name, t in before.items() if name != "model.norm.weight")
    lines = read_metrics(tmp_path / "run")
    assert "batch is skipped (stage stable, batches 4 to 5)" in lines[2]["warning"]


SCRIPT = """
import sys, os, signal, torch
from pathlib import Path
torch.set_num_threads(1)
from tests.fixtures.byte_tokenizer import write_tokenizer
from tests.train.runs import corpus, recipe, runner, stage
folder, kill = Path(sys.argv[1]), int(sys.argv[2])
made = runner(recipe(stage(steps=12)), folder / "run", corpus(folder / "data"))
def report(line):
    if line["step"] == kill:
        os.kill(os.getpid(), signal.Signals[sys.argv[3]])
made._report = report
print(made.run().step)
"""


@pytest.mark.parametrize(("name", "code", "kept"), [("SIGKILL", -9, 4), ("SIGTERM", 0, 5)])
def test_a_killed_run_goes_on_from_its_last_checkpoint(
    tmp_path: Path, name: str, code: int, kept: int
) -> None:
    command = [sys.executable, "-c", SCRIPT, str(tmp_path)]
    ended = subprocess.run(
        [*command, "5", name], cwd=Path(__file__).parents[2], capture_output=True, text=True
    )
    assert ended.returncode == code, ended.stderr
    found = latest(tmp_path / "run")
    assert found is not None and found.step == kept
    again = subprocess.run(
        [*command, "0", name], cwd=Path(__file__).parents[2], capture_output=True, text=True
    )
    assert again.stdout.split() == ["12"], again.stderr
    runner(recipe(stage(steps=12)), tmp_path / "whole", corpus(tmp_path / "data")).run()
    assert losses(tmp_path / "run") == losses(tmp_path / "whole")


def test_a_checkpoint_says_what_made_it(tmp_path: Path) -> None:
    data = corpus(tmp_path / "data")
    runner(recipe(stage("stable", steps=1)), tmp_path / "run", data).run()
    state = json.loads((tmp_path / "run" / "step-000000001" / "state.json").read_text())
    assert state["made_by"]["torch"] == torch.__version__
    root = Path(__file__).parents[2]
    command = ["git", "-C", str(root), "rev-parse", "HEAD"]
    if (root / ".git").exists() and shutil.which("git"):
        commit = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
        assert state["made_by"]["commit"].removesuffix("-dirty") == commit
    assert state["recipe"]["stages"][0]["steps"] == 1


def test_a_save_that_is_cut_off_leaves_the_one_before(tmp_path: Path) -> None:
    def broken(folder: Path) -> None:
        (folder / "half").write_text("x")
        raise KeyboardInterrupt

    checkpoint.save(tmp_path, 1, {}, lambda folder: None)
    with pytest.raises(KeyboardInterrupt):
        checkpoint.save(tmp_path, 2, {}, broken)
    assert [one.step for one in saved(tmp_path)] == [1]
    checkpoint.save(tmp_path, 3, {}, lambda folder: None)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-000000001", "step-000000003"]
    assert json.loads((tmp_path / "step-000000003" / "state.json").read_text())["step"] == 3


def _tokenizer(folder: Path) -> Path:
    (folder / "tokenizer").mkdir()
    write_tokenizer(folder / "tokenizer", 300)
    return folder / "tokenizer"


def test_waiting_threads_of_torch_sleep() -> None:
    given = {name: value for name, value in os.environ.items() if name != "GOMP_SPINCOUNT"}
    shown = subprocess.run(
        [sys.executable, "-c", "import minicpm4.train.session"],
        env={**given, "OMP_DISPLAY_ENV": "verbose"},
        capture_output=True,
        text=True,
    ).stderr
    if "GOMP_SPINCOUNT" not in shown:
        pytest.skip("torch has another OpenMP than libgomp here")
    assert "GOMP_SPINCOUNT = '1000'" in shown
