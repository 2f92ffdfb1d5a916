"""A hundred steps of a two-layer model, seed and all fixed: the losses that are committed come out again.

A change that is meant to change numbers writes them anew and says so in its message:

    .venv/bin/python -m tests.train.test_golden_losses
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import numpy as np
import pytest

from minicpm4.train.metrics import read_metrics
from minicpm4.train.recipe import Recipe
from tests.train.runs import corpus, recipe, runner, stage

GOLDEN = Path(__file__).with_suffix(".json")
# Up to which step which relative difference is allowed. Ten times what was seen when torch's and its
# libraries' kernels were held to AVX2, to SSE4.2 and to MKL's compatible mode (in ternary stages a
# weight now and then falls on the other side of a threshold).
LIMITS = {
    "adamw": {10: 2e-6, 50: 5e-5, 100: 1e-3},
    "muon, sparse, ternary": {10: 2e-6, 75: 5e-6, 100: 5e-3},
}
TERNARY = {"self_attn.*": "ternary-g64", "mlp.*": "ternary-g64"}


def recipes() -> dict[str, Recipe]:
    decay = {"kind": "linear", "steps": 20}
    return {
        "adamw": recipe(stage(steps=100, warmup=5, decay=decay, mtp=0.3, z_loss=1e-4)),
        "muon, sparse, ternary": recipe(
            stage("dense", steps=50, warmup=5),
            stage("sparse", steps=25, attention="sparse"),
            stage("ternary", steps=25, warmup=5, warmup_from=0.0, rounding=TERNARY, decay=decay),
            optimiser={"kind": "muon"},
        ),
    }


def losses(made: Recipe, folder: Path) -> list[float]:
    runner(made, folder / "run", corpus(folder / "data")).run()
    return [line["loss"] for line in read_metrics(folder / "run")]


@pytest.mark.parametrize("name", list(LIMITS))
def test_the_losses_are_those_committed(tmp_path: Path, name: str) -> None:
    golden = np.array(json.loads(GOLDEN.read_text(encoding="utf-8"))[name])
    found = np.array(losses(recipes()[name], tmp_path))
    assert found.shape == golden.shape == (100,)
    for step, limit in LIMITS[name].items():
        np.testing.assert_allclose(found[:step], golden[:step], rtol=limit)


def main() -> None:
    import torch

    torch.set_num_threads(1)
    table = {}
    for name, made in recipes().items():
        with tempfile.TemporaryDirectory() as folder:
            table[name] = [round(x, 7) for x in losses(made, Path(folder))]
    GOLDEN.write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
