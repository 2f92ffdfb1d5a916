"""LoRA: starts as the model was, trains the pairs alone, merges to the same logits."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from minicpm4 import LLM  # noqa: E402
from minicpm4.errors import ConfigError  # noqa: E402
from minicpm4.formats import QuantSpec  # noqa: E402
from minicpm4.train.export import export  # noqa: E402
from minicpm4.train.lora import Lora  # noqa: E402
from minicpm4.train.loss import next_token_loss  # noqa: E402
from minicpm4.train.model import Mode, TrainableModel  # noqa: E402
from minicpm4.train.optim import Optimiser  # noqa: E402
from minicpm4.train.settings import Adapter, OptimConfig  # noqa: E402
from tests.train.batches import batch  # noqa: E402
from tests.train.runs import corpus, recipe, runner, stage  # noqa: E402
from tests.train.test_export import close, logits_of, model_of, prompt  # noqa: E402


def train(model: TrainableModel, lora: Lora, steps: int = 3) -> list[float]:
    optimiser = Optimiser(lora.named_parameters(), OptimConfig(weight_decay=0.0))
    optimiser.set_rate(0.02)
    given = batch([40], model.config.vocab_size, 5)
    losses = []
    for _ in range(steps):
        targets = torch.from_numpy(given.targets)
        loss = next_token_loss(model(given), model.head(), targets, scale=model.config.logit_scale)
        lora.zero_grad()
        (loss.total / loss.count).backward()
        optimiser.step()
        losses.append(float(loss.nll / loss.count))
    return losses


def test_training_starts_from_the_model_and_moves_the_pairs_alone() -> None:
    model, ids = model_of(), prompt()
    before, weights = logits_of(model, ids), {n: p.clone() for n, p in model.state_dict().items()}
    lora = Lora(model, Adapter(rank=4))
    np.testing.assert_array_equal(logits_of(model, ids), before)
    losses = train(model, lora)
    assert losses[-1] < losses[0] - 0.05
    assert np.abs(logits_of(model, ids) - before).max() > 0.1
    assert model.state_dict().keys() == weights.keys()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())
    assert len(lora.targets) == 21 and all(p.grad is None for p in model.parameters())


def test_merging_gives_the_same_logits() -> None:
    model, ids = model_of(), prompt()
    lora = Lora(model, Adapter(rank=4, alpha=8.0, targets=("self_attn.*", "down_proj")))
    train(model, lora)
    expected = logits_of(model, ids)
    lora.merge(model)
    assert not model.low_rank and all(p.requires_grad for p in model.parameters())
    close(logits_of(model, ids), expected, 1e-5)


@pytest.mark.parametrize("kind", [None, "ternary", "int4"])
@pytest.mark.parametrize("llama", [False, True])
def test_exports_are_merged(tmp_path: Path, kind: str | None, llama: bool) -> None:
    rounding = {} if kind is None else {"*_proj": QuantSpec(kind=kind, group_size=64)}
    model, ids = model_of(rounding), prompt()
    train(model, Lora(model, Adapter(rank=4, targets=("q_proj", "mlp.*"))))
    export(model, tmp_path / "out", llama=llama)
    with LLM(tmp_path / "out", kv="float32", isa="scalar", threads=1) as llm:
        close(llm.logits(ids), logits_of(model, ids))
        assert (
            kind is None or f"9 matrices {'F16' if kind == 'ternary' else 'F32'} as {kind}" in llm.description
        )


def test_pairs_resume_from_their_own_state() -> None:
    first, second = model_of(), model_of()
    lora = Lora(first, Adapter(rank=2, targets=("v_proj",)))
    train(first, lora)
    names = [f"model.layers.{i}.self_attn.v_proj.lora_{x}.weight" for i in range(3) for x in "AB"]
    assert sorted(lora.state_dict()) == sorted(names)
    Lora(second, Adapter(rank=2, targets=("v_proj",)), seed=9).load_state_dict(lora.state_dict())
    np.testing.assert_array_equal(logits_of(first, prompt()), logits_of(second, prompt()))


def test_alpha_is_divided_by_the_rank() -> None:
    assert Adapter(rank=8, alpha=16.0).scale == 2.0
    assert Adapter(rank=8).scale == 1.0


def test_a_stage_of_pairs_keeps_no_gradients_of_the_model(tmp_path: Path) -> None:
    made = recipe(stage("whole", steps=1, mtp=0.3), stage("pairs", steps=1, lora={"rank": 2}))
    training = runner(made, tmp_path / "run", corpus(tmp_path / "data"))
    held = []

    def report(line: Mapping[str, Any]) -> None:
        modules = [training.session.model, *training.session.heads]
        held.append(sum(p.numel() for one in modules for p in one.parameters() if p.grad is not None))

    training._report = report
    training.run()
    assert held[0] > 0 and held[1] == 0


def test_what_cannot_be_is_refused() -> None:
    model = model_of()
    with pytest.raises(ConfigError, match="lora target 'q_pro' fits no matrix"):
        Lora(model, Adapter(targets=("q_pro",)))
    lora = Lora(model, Adapter(rank=2))
    with pytest.raises(ConfigError, match="has low-rank pairs already"):
        Lora(model, Adapter(rank=2))
    model.mode = Mode(rounding={"mlp.*": QuantSpec(kind="int4", group_size=64)})
    with pytest.raises(ConfigError, match=r"cannot be merged into .*mlp.* which is rounded"):
        lora.merge(model)
    assert len(model.low_rank) == 21
    for settings, message in (
        ({"rank": 0}, "rank = 0"),
        ({"alpha": -1.0}, "alpha = -1"),
        ({"targets": ()}, "no targets"),
    ):
        with pytest.raises(ConfigError, match=message):
            Adapter(**settings)
