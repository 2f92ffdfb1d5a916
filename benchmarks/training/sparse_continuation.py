"""Does a dense model lose anything when its training goes on with sparse attention?

The start is a checkpoint that looks things up: recipes/laptop.toml's, at the end of its last dense stage. It
is trained on, as the recipe's long stage says (facts hidden in texts of up to 4,096 tokens, and manuals),
once with dense attention and once with sparse, on the same batches. The jump is what the first batch's loss
differs by, with the same weights.

    .venv/bin/minicpm4 train recipes/laptop.toml --until 1500
    .venv/bin/python -m benchmarks.training.sparse_continuation [--run runs/laptop] [--steps 120]
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

from benchmarks.training.common import ROOT, Lab, Run, arguments, last

STAGE = "long"


def main() -> None:
    given = arguments(__doc__, run="runs/laptop", steps="120")
    lab, steps = Lab("sparse_continuation", given), int(given.steps)
    runs = {kind: lab.run(kind, table(Path(given.run), kind, steps)) for kind in ("dense", "sparse")}
    dense, sparse = runs["dense"], runs["sparse"]
    first = {kind: run.lines[0]["loss"] for kind, run in runs.items()}
    lab.write(
        "A dense model, trained on with dense and with sparse attention",
        {kind: run.curve() for kind, run in runs.items()},
        {
            "steps": steps,
            "first loss": {kind: round(value, 5) for kind, value in first.items()},
            "jump": first["sparse"] / first["dense"] - 1,
            "last tenth": {kind: round(last(run.lines), 5) for kind, run in runs.items()},
            "last tenth differs by": last(sparse.lines) / last(dense.lines) - 1,
            "validation": {kind: round(run.validation, 5) for kind, run in runs.items()},
            "validation differs by": sparse.validation / dense.validation - 1,
            "seconds": {kind: seconds(run) for kind, run in runs.items()},
            "sparse_config": laptop()["model"]["shape"]["sparse_config"],
        },
        x="optimiser step",
    )


def seconds(run: Run) -> int:
    return round(sum(line["seconds"] for line in run.lines))


def laptop() -> dict[str, Any]:
    return tomllib.loads((ROOT / "recipes" / "laptop.toml").read_text(encoding="utf-8"))


def start(run: Path) -> Path:
    """The checkpoint at the end of the stages before. Raises SystemExit."""
    steps = 0
    for stage in laptop()["stages"]:
        if stage["name"] == STAGE:
            break
        steps += stage["steps"]
    folder = run / f"step-{steps:09d}" / "model"
    if not folder.is_dir():
        raise SystemExit(
            f"error: {folder} is not there. Make it: minicpm4 train recipes/laptop.toml --until {steps}"
        )
    return folder


def table(run: Path, attention: str, steps: int) -> dict[str, Any]:
    recipe = laptop()
    stage = next(stage for stage in recipe["stages"] if stage["name"] == STAGE)
    changed = {
        "steps": steps,
        "attention": attention,
        "warmup": 0,
        "decay": stage["decay"] | {"steps": steps * 3 // 8},
    }
    needed = {name: recipe["corpora"][name] for name in (*stage["data"], "manuals")}
    return {
        "model": {"start": str(start(run)), "mup_width": recipe["model"]["mup_width"]},
        "tokenizer": {"path": str(run / "tokenizer")},
        "corpora": needed,
        "optimiser": recipe["optimiser"],
        "checkpoints": {"every": 50, "last": 1},
        "precision": recipe["precision"],
        "seed": recipe["seed"],
        "validate": 1 << 20,
        "stages": [stage | changed],
    }


if __name__ == "__main__":
    main()
