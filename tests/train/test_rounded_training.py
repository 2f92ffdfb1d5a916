"""Training through rounding: the loss falls, and the engine runs what comes out with the same logits."""

from __future__ import annotations

from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from minicpm4 import LLM  # noqa: E402
from minicpm4.formats import QuantSpec  # noqa: E402
from minicpm4.formats.quant import BlockSpec  # noqa: E402
from minicpm4.train.export import export  # noqa: E402
from minicpm4.train.loss import next_token_loss  # noqa: E402
from minicpm4.train.model import Mode, TrainableModel  # noqa: E402
from minicpm4.train.optim import Optimiser, clip_gradients  # noqa: E402
from minicpm4.train.settings import OptimConfig  # noqa: E402
from tests.train.batches import batch  # noqa: E402
from tests.train.test_export import close, logits_of, model_of, prompt  # noqa: E402

MODES = {
    "float": Mode(),
    "ternary": Mode(rounding={"*_proj": QuantSpec(kind="ternary", group_size=64)}),
    "blocks": Mode(rounding={"*_proj": BlockSpec(kind="ternary", group_size=128)}),
    "int4": Mode(rounding={"*_proj": QuantSpec(kind="int4", group_size=32)}),
    "fp8": Mode(fp8=True),
    "fp8, ternary": Mode(rounding={"mlp.*": QuantSpec(kind="ternary", group_size=64)}, fp8=True),
}


def losses_of(model: TrainableModel, steps: int, kind: str) -> list[float]:
    """Learn one batch by heart."""
    named = list(model.named_parameters())
    optimiser = Optimiser(named, OptimConfig(kind=kind, weight_decay=0.0, adamw_rate=0.3))
    optimiser.set_rate(0.01)
    given, losses = batch([60, 68], model.config.vocab_size, 6), []
    for _ in range(steps):
        targets = torch.from_numpy(given.targets)
        loss = next_token_loss(model(given), model.head(), targets, scale=model.config.logit_scale)
        model.zero_grad()
        (loss.total / loss.count).backward()
        clip_gradients(model.parameters(), 1.0)
        optimiser.step()
        losses.append(float(loss.nll / loss.count))
    return losses


@pytest.mark.parametrize("kind", ["adamw", "muon"])
@pytest.mark.parametrize("name", MODES)
def test_it_learns_and_runs_in_the_engine(tmp_path: Path, name: str, kind: str) -> None:
    model, ids = model_of(), prompt()
    model.mode = MODES[name]
    losses = losses_of(model, 12, kind)
    print(f"{name} {kind}: {losses[0]:.3f} to {losses[-1]:.3f}")
    assert losses[-1] < losses[0] - 1.0
    export(model, tmp_path / "out")
    expected = logits_of(model, ids)
    with LLM(tmp_path / "out", kv="float32", isa="scalar", threads=1) as llm:
        # The engine does not compute in FP8: e4m3 rounds both sides of every product to 4 bits.
        close(llm.logits(ids), expected, 0.15 if model.mode.fp8 else 1e-4)
        assert ("as ternary" in llm.description) == ("ternary" in name or name == "blocks")
