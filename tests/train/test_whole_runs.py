"""Nothing in a run's folder is lost: killed at any step, with a loss that is no number."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

from minicpm4.errors import CheckpointError, TrainingError
from minicpm4.train import metrics
from minicpm4.train.metrics import MetricsLog, read_metrics
from minicpm4.train.saved import LOG, saved
from tests.train.runs import corpus, recipe, runner, stage

# Saves the checkpoint of step 7 over another one, in a child that ends at each of its calls of the system.
KILLED = """
import os, sys
from pathlib import Path
from minicpm4.train import checkpoint
from minicpm4.train.saved import latest

EVENTS = ("open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "shutil.rmtree")
left = None

def hook(event, args):
    global left
    if left is not None and event in EVENTS:
        left -= 1
        if left < 0:
            os._exit(9)

def save(run, text):
    checkpoint.save(run, 7, {"text": text}, lambda folder: (folder / "weights").write_text(text))

try:
    from minicpm4.files import whole
    whole._swapped = lambda one, other: False  # a system that cannot exchange two names at once
except ImportError:
    pass
sys.addaudithook(hook)
for number in range(1000):
    run = Path(sys.argv[1]) / str(number)
    save(run, "old")
    child = os.fork()
    if not child:
        left = number
        save(run, "new")
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    found = latest(run)
    assert found is not None, f"both are lost after {number} calls"
    text = (found.folder / "weights").read_text()
    assert text == found.state()["text"], number
    if code == 0:
        assert text == "new"
        break
print(number)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_a_checkpoint_saved_again_is_never_lost(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 10


def strict(run: Path) -> list[dict[str, Any]]:
    """Lines of the log, as a reader takes them that knows no NaN and no Infinity."""

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is in {LOG}")

    return [json.loads(line, parse_constant=refuse) for line in (run / LOG).read_text().splitlines()]


def test_the_log_holds_finite_numbers_or_null(tmp_path: Path) -> None:
    with MetricsLog(tmp_path, 0, tensorboard=False) as log:
        log.add({"step": 1, "loss": float("inf"), "validation": float("nan"), "rate": 0.1})
        log.add({"step": 2, "loss": 2.0, "validation": -float("inf")})
        log.draw("t")
    assert strict(tmp_path)[0] == {"step": 1, "loss": None, "validation": None, "rate": 0.1}
    (tmp_path / LOG).write_text('{"step": 1, "loss": Infinity}\n{"step": 2, "lo')
    MetricsLog(tmp_path, 1, tensorboard=False).close()
    assert strict(tmp_path) == read_metrics(tmp_path) == [{"step": 1, "loss": None}]


def test_the_log_is_on_the_disk_before_its_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a power cut a checkpoint could be there without lines of steps before it."""
    run, seen, done = tmp_path / "run", [], metrics.sync

    def told(path: Path) -> None:
        done(path)
        seen.append((path.name, len(read_metrics(run)), [one.step for one in saved(run)]))

    monkeypatch.setattr(metrics, "sync", told)
    made = recipe(stage(steps=4), checkpoints={"every": 2})
    runner(made, run, corpus(tmp_path / "data")).run(until=3)
    assert seen == [(LOG, 2, []), (LOG, 3, [2])]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_log_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path, 0, tensorboard=False)
    log._file.close()
    full = Path("/dev/full").open("a", encoding="utf-8")  # noqa: SIM115 the log closes it
    log._file = full
    with pytest.raises(TrainingError, match=rf"cannot write to .*{LOG}: No space left") as refused, log:
        log.add({"step": 1, "loss": 2.0})
    assert full.closed
    assert refused.value.remedy == (
        "free space there, then do the same again: it goes on from the last checkpoint"
    )


def test_a_save_of_weights_that_are_not_finite_says_what_can_be_done(tmp_path: Path) -> None:
    made = runner(recipe(stage("stable", steps=2)), tmp_path / "run", corpus(tmp_path / "data"))
    made.run(1)
    dict(made.session.model.named_parameters())["model.norm.weight"].data[0] = float("inf")
    with pytest.raises(CheckpointError, match=r"norm\.weight holds a value that is not finite") as refused:
        made.run()
    assert refused.value.remedy.startswith("earlier checkpoints are whole: begin another run with the model")


@pytest.mark.parametrize(
    "line",
    ['{"step": 1, "loss": "x"}', '{"step": true}', '{"step": 1, "validation": [2]}', "[]", '{"loss": 1}'],
)
def test_lines_that_no_run_wrote_end_none(tmp_path: Path, line: str) -> None:
    (tmp_path / LOG).write_text(line + '\n{"step": 1, "loss": 2.5}\n')
    with MetricsLog(tmp_path, 1, tensorboard=False) as log:
        log.draw("t")
    assert strict(tmp_path) == [{"step": 1, "loss": 2.5}]


def test_a_loss_without_bounds_is_null_everywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = runner(recipe(stage("stable", steps=1)), tmp_path / "run", corpus(tmp_path / "data"))
    gradients = made.session.gradients

    def broken(batches: Any) -> Any:
        done = gradients(batches)
        object.__setattr__(done, "loss", float("inf"))
        return done

    monkeypatch.setattr(made.session, "gradients", broken)
    shown: list[Any] = []
    made._report = shown.append
    assert made.run().loss is None
    (line,) = strict(tmp_path / "run")
    assert line["loss"] is shown[0]["loss"] is None and "loss is inf" in line["warning"]
