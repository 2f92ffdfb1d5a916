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

from minicpm4.config import SparseConfig  # noqa: E402
from minicpm4.kernels.cpu import CpuOps  # noqa: E402
from minicpm4.kernels.ref import RefOps  # noqa: E402
from minicpm4.model.draft import residual_scale  # noqa: E402
from minicpm4.train.head_plan import HEADS  # noqa: E402
from minicpm4.train.hf_folder import write_folder  # noqa: E402
from minicpm4.train.loss import next_token_loss  # noqa: E402
from minicpm4.train.model import Mode  # noqa: E402
from minicpm4.train.mtp import MultiToken, second_targets  # noqa: E402
from minicpm4.train.session import HEAD_KINDS  # noqa: E402
from tests.fixtures.loading import load_model  # noqa: E402
from tests.model.drafts import Drafter  # noqa: E402
from tests.train.batches import Batch, batch  # noqa: E402
from tests.train.test_model import SMALL, TINY, small  # noqa: E402

torch.set_num_threads(1)
# Blocks of the engine's pages.
WIDE = SparseConfig(kernel_size=8, kernel_stride=4, block_size=16, window_size=16, topk=2, dense_len=-1)


def extra(seed: int = 5) -> MultiToken:
    return MultiToken.new(SMALL, seed, lambda name, config: 0.3)


def write(more: MultiToken, folder: Path) -> None:
    more.write(folder, more.config, more.state_dict())


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
    write(extra(), tmp_path)
    with safe_open(tmp_path / "model.safetensors", "np") as file:
        names = set(file.keys())
        assert file.get_tensor("fc.weight").shape == (16, 32)
    assert {"fc.weight", "input_norm1.weight", "input_norm2.weight", "layers.0.mlp.up_proj.weight"} < names
    assert len(names) == 3 + 9
    raw = json.loads((tmp_path / "config.json").read_text())
    assert raw["scale_depth"] / raw["mup_denominator"] ** 0.5 == pytest.approx(residual_scale(SMALL))


@pytest.mark.parametrize("table", [RefOps, lambda: CpuOps(threads=1)], ids=["ref", "cpu"])
@pytest.mark.parametrize("sparse", [None, WIDE], ids=["dense", "sparse"])
@pytest.mark.parametrize("sizes", [[90], [50, 1, 39]], ids=str)
def test_the_engine_s_draft_is_the_trainer_s(tmp_path: Path, table: Any, sparse: Any, sizes: Any) -> None:
    shape = {"hidden_size": 64, "intermediate_size": 64, "head_dim": 16}
    model, ops, given = small(Mode(sparse=sparse), **shape), table(), batch([91], 50)
    more = MultiToken.new(model.config, 5, lambda name, config: 0.2)
    write(more, tmp_path / "mtp")
    write_folder(tmp_path / "model", model.config, model.state_dict())
    with torch.no_grad():
        want = more(model, given, model(given))
        wanted = [x[:90].numpy() for x in (want, model.logits(want))]
    weights = load_model(tmp_path / "model", ops=ops).weights
    _, *found = Drafter(ops, weights, tmp_path / "mtp", sparse).feed(given.ids.tolist(), sizes)
    for got, one in zip(found, wanted, strict=True):
        np.testing.assert_allclose(got, one, atol=1e-4 * np.abs(one).max())


def test_every_head_that_is_planned_can_be_trained() -> None:
    """A plan without a class would be estimated, and never trained."""
    assert [kind.plan for kind in HEAD_KINDS] == list(HEADS)
