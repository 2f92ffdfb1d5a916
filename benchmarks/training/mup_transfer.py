"""Does the best learning rate of a narrow model hold for a wide one?

Models of width 64, 128 and 256, same depth, same batches, learning rates in steps of a factor 2; with muP
and without (one initialisation, one rate and no multipliers at all widths). AdamW, whose rates muP scales.

    .venv/bin/python -m benchmarks.training.mup_transfer [--steps 120] [--threads 1]
"""

from __future__ import annotations

from typing import Any

from benchmarks.training.common import Lab, arguments, last, only_stage, recipe, shape

WIDTHS = (64, 128, 256)
RATES = {"muP": [2.0**-n for n in range(3, 9)], "no muP": [2.0**-n for n in range(4, 11)]}
PLAIN = {"scale_emb": 1.0, "scale_depth": 3**0.5}  # at three layers: branches x 1


def main() -> None:
    given = arguments(__doc__, steps="120")
    lab, steps = Lab("mup_transfer", given), int(given.steps)
    curves: dict[str, list[tuple[float, float]]] = {}
    for kind, rates in RATES.items():
        for width in WIDTHS:
            curve = []
            for rate in sorted(rates):
                run = lab.run(f"{kind}, width {width}, rate {rate:g}", table(kind, width, rate, steps))
                curve.append((rate, round(last(run.lines), 4)))
            curves[f"{kind}, width {width}"] = curve
    best = {label: min(curve, key=lambda point: point[1])[0] for label, curve in curves.items()}
    moved = {
        kind: max(best[f"{kind}, width {w}"] for w in WIDTHS)
        / min(best[f"{kind}, width {w}"] for w in WIDTHS)
        for kind in RATES
    }
    # A diverged run would flatten all others.
    top = 1.6 * min(y for curve in curves.values() for _, y in curve)
    shown = {label: [(x, min(y, top)) for x, y in curve] for label, curve in curves.items()}
    lab.write(
        "Training loss by learning rate and width",
        shown,
        {
            "steps": steps,
            "best rate": best,
            "best rates differ by a factor of": moved,
            "losses": {label: {f"{x:g}": y for x, y in curve} for label, curve in curves.items()},
            "drawn": f"losses above {top:.2f} at {top:.2f}",
        },
        x="learning rate",
        y="loss of the last tenth, nats a token",
        log_x=True,
    )


def table(kind: str, width: int, rate: float, steps: int) -> dict[str, Any]:
    mup = kind == "muP"
    plain = PLAIN | {"dim_model_base": width}  # logits are divided by hidden_size / dim_model_base
    model = {"shape": shape(width, 3, **({} if mup else plain)), "mup_width": 64 if mup else 0}
    stages = only_stage(steps, rate=rate, warmup=10)
    return recipe(model, stages, optimiser={"kind": "adamw"}, checkpoints={"every": 1 << 20, "last": 1})


if __name__ == "__main__":
    main()
