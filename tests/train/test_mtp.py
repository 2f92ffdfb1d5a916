"""Multi-token prediction: which tokens it sees and predicts, its gradients, and its file."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
from safetensors import safe_open  # noqa: E402

from minicpm4.errors import CheckpointError  # noqa: E402
from minicpm4.train.loss import next_token_loss  # noqa: E402
from minicpm4.train.model import Mode  # noqa: E402
from minicpm4.train.mtp import MultiToken, residual_scale, second_targets  # noqa: E402
from tests.train.batches import Batch, batch  # noqa: E402
from tests.train.test_model import SMALL, TINY, small  # noqa: E402

torch.set_num_threads(1)


def extra(seed: int = 5) -> MultiToken:
    return MultiToken.new(SMALL, seed, lambda name, config: 0.3)


def loss_of(model: Any, more: MultiToken, given: Batch) -> Any:
    targets, _ = second_targets(given.targets, given.cu_rows)
    hidden = more(model, given, model(given))
    found = next_token_loss(hidden, model.head(), targets, scale=model.config.logit_scale)
    return found.total / found.count


def test_targets_are_the_tokens_after_the_next() -> None:
    given = batch([5, 1, 4], 50)
    weight = np.arange(10, dtype=np.float32)
    targets, weights = second_targets(given.targets, given.cu_rows, weight)
    ids = given.ids.tolist()
    assert targets.tolist() == [ids[2], ids[3], ids[4], -1, -1, -1, ids[8], ids[9], -1, -1]
    assert weights is not None and weights[:9].tolist() == list(range(1, 10))


def test_a_row_sees_the_next_token_and_no_later_one() -> None:
    model, more = small().double(), extra().double()
    given = batch([9, 6], 50)
    before = more(model, given, model(given))
    for changed in (4, 12):
        ids = given.ids.copy()
        ids[changed] = (ids[changed] + 1) % 50
        other = replace(given, ids=ids)
        moved = (more(model, other, model(other)) - before).abs().amax(dim=1) > 1e-9
        document = slice(0, 9) if changed < 9 else slice(9, 15)
        want = [document.start + i for i in range(document.stop - document.start)]
        # The last row of the first document takes in the next document's first token, and nobody reads it.
        assert [i for i in want if bool(moved[i])] == [i for i in want if i >= changed - 1]
        assert not any(bool(moved[i]) for i in range(15) if i not in want)


@pytest.mark.parametrize("sparse", [None, TINY], ids=["dense", "sparse"])
def test_gradients_reach_layer_and_model(sparse: Any) -> None:
    model, more = small(Mode(sparse=sparse)).double(), extra().double()
    given = batch([37, 22], 50)
    loss_of(model, more, given).backward()
    eps = 1e-5
    for owner in (more, model):
        for name, parameter in owner.named_parameters():
            way = torch.randn(
                parameter.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2)
            )
            losses = []
            with torch.no_grad():
                for step in (eps, -2 * eps):
                    parameter += step * way
                    losses.append(float(loss_of(model, more, given)))
                parameter += eps * way
            slope = float((parameter.grad * way).sum())
            assert (losses[0] - losses[1]) / (2 * eps) == pytest.approx(slope, rel=1e-5, abs=1e-8), name


def test_recomputing_changes_nothing() -> None:
    given, found = batch([37, 22], 50), []
    for recompute in (False, True):
        model, more = small(Mode(recompute=recompute)), extra()
        loss_of(model, more, given).backward()
        found.append([parameter.grad for parameter in more.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_the_file_has_an_eagle_heads_names(tmp_path: Path) -> None:
    more = extra()
    more.save(tmp_path)
    with safe_open(tmp_path / "model.safetensors", "np") as file:
        names = set(file.keys())
        assert file.get_tensor("fc.weight").shape == (16, 32)
    assert {"fc.weight", "input_norm1.weight", "input_norm2.weight", "layers.0.mlp.up_proj.weight"} < names
    assert len(names) == 3 + 9
    raw = json.loads((tmp_path / "config.json").read_text())
    assert raw["scale_depth"] / raw["mup_denominator"] ** 0.5 == pytest.approx(residual_scale(SMALL))
    model, given = small(), batch([30], 50)
    loaded = MultiToken.load(tmp_path, SMALL)
    assert torch.equal(loaded(model, given, model(given)), more(model, given, model(given)))


def test_a_layer_of_another_model_is_refused(tmp_path: Path) -> None:
    extra().save(tmp_path)
    with pytest.raises(CheckpointError, match=r"fc.weight in .* is \(16, 32\), .* asks for \(32, 64\)"):
        MultiToken.load(tmp_path, replace(SMALL, hidden_size=32))
    (tmp_path / "model.safetensors").write_bytes(b"no")
    with pytest.raises(CheckpointError, match="cannot read"):
        MultiToken.load(tmp_path, SMALL)
