"""BitCPM4's wind-tunnel question: which share of the tokens must be trained with ternary weights?

A small model is trained on as many tokens each time. The first part is trained in full
precision, the last 10 to 60% with ternary weights, to which the learning rate is warmed up again, from 0, or
not; compared with full precision and with ternary weights from the first step (MiniCPM4 report, arXiv
2506.07900). All rates decay over the last fifth. ``after decay``: full precision ends with a decay of its
own before ternary weights begin, as with a released checkpoint; then "warmed up" means that the rate rises
again to what it was, and "not" that it stays where the decay left it.

    .venv/bin/python -m benchmarks.training.qat_share [--seeds 1] [--layers 6] [--steps 500] [--threads 2]
"""

from __future__ import annotations

import statistics
from typing import Any

from benchmarks.training.common import Lab, arguments, recipe, shape

TERNARY = {"self_attn.*": "ternary-g64", "mlp.*": "ternary-g64"}
RATE, TOKENS = 0.02, 4096
SHARES = (10, 20, 40, 60)
LOW = 0.05  # of the rate: what a decay leaves


def main() -> None:
    given = arguments(__doc__, seeds="1", steps="500", layers="6")
    lab, steps, layers = Lab("qat_share", given), int(given.steps), int(given.layers)
    seeds = [int(x) for x in given.seeds.split(",")]
    found: dict[str, list[float]] = {}
    for seed in seeds:
        for label, stages in variants(steps).items():
            name = f"{label}, {layers} layers, seed {seed}, {steps} steps"
            run = lab.run(name, table(stages, seed, layers))
            found.setdefault(label, []).append(run.validation)
    means = {label: statistics.fmean(values) for label, values in found.items()}
    ends = {100.0: means["ternary, 100%"]}

    def curve(kind: str) -> list[tuple[float, float]]:
        own = {float(s): means[f"ternary, {s}%, {kind}"] for s in SHARES}
        return sorted((own | ends).items())

    curves = {
        "warmed up again": curve("warmed up"),
        "not warmed up": curve("not"),
        "full precision": [(x, means["full precision"]) for x in (10.0, 100.0)],
        "after decay, warmed up": [(40.0, means["ternary, 40% after decay, warmed up"])],
        "after decay, not": [(40.0, means["ternary, 40% after decay, not"])],
    }
    lab.write(
        "Loss of a ternary model by the share of tokens trained so",
        curves,
        {
            "seeds": seeds,
            "tokens": steps * TOKENS,
            "layers": layers,
            "parameters": sum(p.numel() for p in run.session.model.parameters()),
            "validation": found,
            "mean": {label: round(value, 4) for label, value in means.items()},
        },
        x="tokens with ternary weights, % of all",
        y="validation loss, nats a token",
    )


def variants(steps: int) -> dict[str, list[dict[str, Any]]]:
    """Stages by label; each has ``steps`` in all."""
    tail = {"kind": "linear", "steps": steps // 5, "final": LOW}
    found = {
        "full precision": [part("full", steps, decay=tail)],
        "ternary, 100%": [part("ternary", steps, rounding=TERNARY, decay=tail)],
    }
    for share in SHARES:
        own = steps * share // 100
        end = tail | {"steps": min(tail["steps"], own // 2)}
        for kind, again in kinds(own).items():
            found[f"ternary, {share}%, {kind}"] = [
                part("full", steps - own),
                part("ternary", own, rounding=TERNARY, decay=end, **again),
            ]
    own = steps * 40 // 100
    before = part("full", steps - own, decay=tail)
    warmed = kinds(own)["warmed up"]
    found["ternary, 40% after decay, warmed up"] = [
        before,
        part("ternary", own, rounding=TERNARY, decay=tail, **warmed),
    ]
    found["ternary, 40% after decay, not"] = [
        before,
        part("ternary", own, rounding=TERNARY, rate=RATE * LOW, warmup=0),
    ]
    return found


def kinds(own: int) -> dict[str, dict[str, Any]]:
    return {"warmed up": {"warmup": max(2, own // 10), "warmup_from": 0.0}, "not": {"warmup": 0}}


def part(name: str, steps: int, **changed: Any) -> dict[str, Any]:
    plain = {
        "name": name,
        "steps": steps,
        "batch_tokens": TOKENS,
        "context": 256,
        "rate": RATE,
        "warmup": 20,
        "data": {"manuals": 1.0},
    }
    return plain | changed


def table(stages: list[dict[str, Any]], seed: int, layers: int) -> dict[str, Any]:
    return recipe({"shape": shape(128, layers), "mup_width": 128}, stages, seed=seed)


if __name__ == "__main__":
    main()
