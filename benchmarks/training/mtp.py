"""What does predicting the token after next as well cost, and what is the extra layer good for?

The same model with lambda 0, 0.1 and 0.3 of the second loss: loss of the next token, of the one after it,
and how often the extra layer's best token is the one that the model itself then finds best: what a
speculative decoder that takes one draft token from it would accept (greedy, on held-out text).

    .venv/bin/python -m benchmarks.training.mtp [--steps 300] [--threads 1]
"""

from __future__ import annotations

from typing import Any

import torch

from benchmarks.training.common import Lab, Run, arguments, only_stage, recipe, shape

LAMBDAS = (0.0, 0.1, 0.3)


def main() -> None:
    given = arguments(__doc__, steps="300")
    lab, steps = Lab("mtp", given), int(given.steps)
    curves, findings = {}, {}
    for factor in LAMBDAS:
        run = lab.run(f"lambda {factor:g}", table(factor, steps))
        seconds = sum(line["seconds"] for line in run.lines)
        found = {"validation": round(run.validation, 4), "seconds": round(seconds)}
        curves[f"lambda {factor:g}"] = run.curve()
        if factor:
            curves[f"lambda {factor:g}, second token"] = run.curve("mtp_loss")
            found |= accepted(run)
        findings[f"lambda {factor:g}"] = found
    lab.write(
        "Multi-token prediction: losses of the next token and of the one after it",
        curves,
        {"steps": steps, "runs": findings},
        x="optimiser step",
    )


@torch.no_grad()
def accepted(run: Run) -> dict[str, float]:
    """Shares of held-out rows whose draft token is the model's own choice one row later, and the text's."""
    session = run.session
    (head,) = session.heads
    same = right = rows = 0
    for batch in run.sources["all"].held_out:
        hidden = session.model(batch)
        own = session.model.logits(hidden).argmax(-1)
        draft = session.model.logits(head(session.model, batch, hidden)).argmax(-1)
        ids = torch.from_numpy(batch.ids.copy()).long()
        inside = torch.ones(len(ids), dtype=torch.bool)
        for end in batch.cu_rows[1:]:  # the last two rows of a piece have no token after next
            inside[max(0, int(end) - 2) : int(end)] = False
        inside[-2:] = False
        at = inside.nonzero()[:, 0]
        same += int((draft[at] == own[at + 1]).sum())
        right += int((draft[at] == ids[at + 2]).sum())
        rows += len(at)
    return {"accepted": round(same / rows, 4), "right": round(right / rows, 4), "rows": rows}


def table(factor: float, steps: int) -> dict[str, Any]:
    model = {"shape": shape(128), "mup_width": 128}
    return recipe(model, only_stage(steps, batch_tokens=4096, mtp=factor))


if __name__ == "__main__":
    main()
