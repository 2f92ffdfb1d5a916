"""An extra head is a plan and a class, each in a list: a made-up one is trained, saved, taken up again and
estimated beside multi-token prediction."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from minicpm4.data.batch import Batch  # noqa: E402
from minicpm4.train import head_plan, session  # noqa: E402
from minicpm4.train.estimate import flops_per_token  # noqa: E402
from minicpm4.train.extra_head import ExtraHead  # noqa: E402
from minicpm4.train.footprint import moments, parameters, trained  # noqa: E402
from minicpm4.train.head_plan import MULTI_TOKEN, HeadPlan, heads_of  # noqa: E402
from minicpm4.train.metrics import read_metrics  # noqa: E402
from minicpm4.train.model import plant  # noqa: E402
from minicpm4.train.mtp import MultiToken  # noqa: E402
from minicpm4.train.recipe import model_config  # noqa: E402
from tests.train.batches import batch  # noqa: E402
from tests.train.runs import corpus, recipe, runner, stage  # noqa: E402

torch.set_num_threads(1)
PROBE = HeadPlan(
    name="probe",
    shapes=lambda config: {"proj.weight": (config.hidden_size, config.hidden_size)},
    config=lambda config: {"what": "a probe"},
    factor=lambda stage: stage.mtp / 2,
    layers=0,
    norms=0,
)


class Probe(ExtraHead):
    """The tokens of the rows themselves, from a matrix times the hidden states."""

    plan = PROBE

    def __init__(self, config: Any, tensors: Any) -> None:
        super().__init__(config, tensors)
        plant(self, "proj.weight", tensors["proj.weight"])

    def forward(self, model: Any, batch: Any, hidden: Any) -> Any:
        return hidden @ self.get_parameter("proj.weight").t()

    def targets(self, batch: Any) -> Any:
        return torch.from_numpy(batch.ids.copy()), None


@pytest.fixture(autouse=True)
def two_heads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head_plan, "HEADS", (MULTI_TOKEN, PROBE))
    monkeypatch.setattr(session, "HEAD_KINDS", (MultiToken, Probe))


def test_two_heads_are_trained_saved_and_taken_up_again(tmp_path: Path) -> None:
    made = recipe(stage(steps=8, mtp=0.4), stage("alone", steps=2))
    data = corpus(tmp_path / "data")
    runner(made, tmp_path / "whole", data).run()
    for until in (3, 10):
        runner(made, tmp_path / "cut", data).run(until)
    lines = read_metrics(tmp_path / "whole")
    assert all({"mtp_loss", "probe_loss"} <= line.keys() for line in lines[:8])
    assert lines[7]["probe_loss"] < lines[0]["probe_loss"]
    assert not {"mtp_loss", "probe_loss"} & lines[9].keys()
    last = "step-000000010"
    for file in ("probe/model.safetensors", "probe/config.json", "mtp/model.safetensors"):
        one, other = ((tmp_path / run / last / file).read_bytes() for run in ("whole", "cut"))
        assert one == other, file


def test_its_names_and_shapes_reach_optimiser_and_estimate(monkeypatch: pytest.MonkeyPatch) -> None:
    made = recipe(stage(mtp=0.4), optimiser={"kind": "muon"})
    config, heads = model_config(made, 96, {}), heads_of(made.stages)
    assert heads == (MULTI_TOKEN, PROBE)
    begun = session.TrainingSession(made, config, session.World())
    begun.enter(made.stages[0], fresh=True)
    shapes = trained(config, heads)
    assert shapes["probe.proj.weight"] == (64, 64)
    assert sum(p.numel() for p in begun.parameters()) == parameters(config, heads).total
    begun.gradients([Batch(**vars(batch([40, 20], 96)))])
    begun.step(0.01)
    assert sum(t.nbytes for t in begun.optimiser.tensors().values()) == moments(shapes, "muon")
    assert "probe.proj.weight/first" in begun.optimiser.tensors()  # no layer's matrix: not Muon's
    both = flops_per_token(config, made.stages[0]).extra
    monkeypatch.setattr(head_plan, "HEADS", (MULTI_TOKEN,))
    assert both - flops_per_token(config, made.stages[0]).extra == 6 * (64 * 64 + 96 * 64)
