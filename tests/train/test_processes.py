"""Two processes, sharded, take the steps that one takes; a checkpoint goes on with another number of
processes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from minicpm4.train.metrics import read_metrics
from minicpm4.train.recipe import Recipe
from tests.train.runs import corpus, recipe, runner, stage

SCRIPT = """
import sys, torch
from pathlib import Path
torch.set_num_threads(1)
from minicpm4.train.session import World
from minicpm4.data.shards import ShardSet
from tests.train.test_processes import recipe_of
from tests.train.runs import runner
folder, until = Path(sys.argv[1]), int(sys.argv[2])
world = World.join()
made = recipe_of(sys.argv[3])
runner(made, folder / "run", ShardSet(folder / "data"), world).run(until)
world.leave()
"""


def recipe_of(kind: str) -> Recipe:
    """Eight steps; "lora": pairs from the second to the fourth and from the sixth to the last."""
    if kind != "lora":
        return recipe(stage(steps=8, micro_tokens=64, mtp=0.3), optimiser={"kind": kind})
    plain = {"steps": 3, "lora": {"rank": 4, "targets": ["self_attn.*", "mlp.*"]}}
    first, again = stage("pairs", **plain), stage("again", **plain)
    return recipe(stage(steps=1), first, stage("between", steps=1), again)


def launch(folder: Path, processes: int, until: int, kind: str) -> None:
    script = folder / "script.py"
    script.write_text(SCRIPT)
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    command = [
        sys.executable,
        *(torchrun if processes > 1 else []),
        str(script),
        str(folder),
        str(until),
        kind,
    ]
    root = str(Path(__file__).parents[2])
    env = {"PYTHONPATH": root, "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(command, capture_output=True, text=True, env=env, timeout=300)
    assert ended.returncode == 0, ended.stderr[-3000:]


@pytest.mark.parametrize("kind", ["adamw", "muon", "lora"])
def test_losses_are_those_of_one_process_whatever_their_number(tmp_path: Path, kind: str) -> None:
    data = corpus(tmp_path / "data")
    launch(tmp_path, 2, 4, kind)  # checkpoints at 2 and 4, by two processes
    written = {"model": "step-000000004/model", "optimiser": "step-000000004"}
    if kind == "lora":
        del written["optimiser"]  # merged pairs leave no moments
    for stem, folder in written.items():
        files = sorted(file.name for file in (tmp_path / "run" / folder).glob(f"{stem}*.safetensors"))
        assert files == [f"{stem}-0000{n}-of-00002.safetensors" for n in (1, 2)]
    launch(tmp_path, 1, 6, kind)
    launch(tmp_path, 2, 8, kind)
    runner(recipe_of(kind), tmp_path / "one", data).run()
    for name in ("loss", "mtp_loss", "gradient_norm"):
        found, wanted = ([line.get(name) for line in read_metrics(tmp_path / run)] for run in ("run", "one"))
        if kind == "lora" and name == "mtp_loss":
            assert found == [None] * 8
            continue
        assert found == pytest.approx(wanted, abs=1e-5, rel=1e-5), name
