"""What does training in FP8 with block scaling lose?

The same model and batches in float32, in bf16 (autocast), and with the layers' products in FP8 over bf16; on
a CPU these are emulated bit by bit (kernels/fp8.py), so the loss is that of FP8 and the time is not. Two
seeds in bf16 tell what difference means nothing.

    .venv/bin/python -m benchmarks.training.fp8 [--steps 200] [--threads 1]
"""

from __future__ import annotations

from typing import Any

from benchmarks.training.common import Lab, arguments, last, only_stage, recipe, shape

RUNS: dict[str, dict[str, Any]] = {
    "float32": {"precision": "float32"},
    "bf16": {"precision": "bf16"},
    "FP8": {"precision": "bf16", "fp8": True},
    "bf16, another seed": {"precision": "bf16", "seed": 2},
}


def main() -> None:
    given = arguments(__doc__, steps="200")
    lab, steps = Lab("fp8", given), int(given.steps)
    curves, findings = {}, {}
    for label, settings in RUNS.items():
        run = lab.run(label, table(steps, **settings))
        curves[label] = run.curve()
        findings[label] = {
            "validation": round(run.validation, 4),
            "training, last tenth": round(last(run.lines), 4),
            "seconds": round(sum(line["seconds"] for line in run.lines)),
        }
    lab.write(
        "Training loss in float32, bf16 and FP8 (emulated)",
        curves,
        {"steps": steps, "width": 256, "runs": findings},
        x="optimiser step",
    )


def table(steps: int, fp8: bool = False, **changed: Any) -> dict[str, Any]:
    model = {"shape": shape(256, 3), "mup_width": 256}
    return recipe(model, only_stage(steps, fp8=fp8), checkpoints={"every": 100, "last": 1}, **changed)


if __name__ == "__main__":
    main()
