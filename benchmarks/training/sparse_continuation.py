"""Does a dense model lose anything when its training goes on with sparse attention?

The start is a checkpoint that looks things up: recipes/laptop.toml's, at the end of its last dense stage. It
is trained on, as the recipe's long stage says (facts hidden in texts of up to 4,096 tokens, and manuals),
with dense attention, with sparse attention as the recipe has it, and with sparse attention that reads the
share of the longest text that MiniCPM4 reads of its own (96 blocks of 512), on the same batches. The jump is
what the first batch's loss differs by, with the same weights.

    .venv/bin/minicpm4 train recipes/laptop.toml --until 1500
    .venv/bin/python -m benchmarks.training.sparse_continuation [--run runs/laptop] [--steps 120]
"""

from __future__ import annotations

import argparse
import json
import shutil
import tomllib
from pathlib import Path
from typing import Any

from benchmarks.training.common import ROOT, Lab, Run, arguments, last

STAGE = "long"
MAX_POSITIONS = 4096  # of that stage
SHARE = 96 / 512  # of blocks, that MiniCPM4 reads of 32,768 tokens


def main() -> None:
    given = arguments(__doc__, run="runs/laptop", steps="120")
    lab, steps = Lab("sparse_continuation", given), int(given.steps)
    tight = laptop()["model"]["shape"]["sparse_config"]
    blocks = MAX_POSITIONS // tight["block_size"]
    near = tight["window_size"] // tight["block_size"]
    tops = {"sparse": tight["topk"], "sparse, share of MiniCPM4": round(blocks * SHARE) - near}
    source = start(Path(given.run))
    runs = {"dense": lab.run("dense", table(given, source, "dense", steps))}
    for kind, topk in tops.items():
        model = with_topk(source, given.folder / lab.name / f"start-topk-{topk}", topk)
        runs[kind] = lab.run(kind, table(given, model, "sparse", steps))
    lab.write(
        "A dense model, trained on with dense and with sparse attention",
        {kind: run.curve() for kind, run in runs.items()},
        {
            "steps": steps,
            "sparse_config": tight,
            "blocks read of 4,096 tokens": {kind: (topk + near) / blocks for kind, topk in tops.items()},
            "jump": {kind: runs[kind].lines[0]["loss"] / runs["dense"].lines[0]["loss"] - 1 for kind in tops},
            "last tenth": {kind: round(last(run.lines), 5) for kind, run in runs.items()},
            "last tenth differs by": {
                kind: last(runs[kind].lines) / last(runs["dense"].lines) - 1 for kind in tops
            },
            "validation": {kind: round(run.validation, 5) for kind, run in runs.items()},
            "validation differs by": {
                kind: runs[kind].validation / runs["dense"].validation - 1 for kind in tops
            },
            "seconds": {kind: seconds(run) for kind, run in runs.items()},
        },
        x="optimiser step",
    )


def with_topk(source: Path, folder: Path, topk: int) -> Path:
    """``source``'s checkpoint as ``folder``, with ``topk`` chosen blocks in its configuration."""
    folder.mkdir(parents=True, exist_ok=True)
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    config["sparse_config"]["topk"] = topk
    for file in source.iterdir():
        if file.name != "config.json":
            shutil.copy2(file, folder / file.name)
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
    return folder


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


def table(given: argparse.Namespace, model: Path, attention: str, steps: int) -> dict[str, Any]:
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
        "model": {"start": str(model), "mup_width": recipe["model"]["mup_width"]},
        "tokenizer": {"path": str(Path(given.run) / "tokenizer")},
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
