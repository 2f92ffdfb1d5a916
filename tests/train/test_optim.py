"""AdamW against torch's, Muon against float64, clipping, factors, and resuming bit for bit."""

from __future__ import annotations

import math
from collections.abc import Mapping
from copy import deepcopy

import numpy as np
import pytest

from minicpm4.errors import CheckpointError, ConfigError

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402

from minicpm4.train.optim import Optimiser, clip_gradients, orthogonal, rule_of  # noqa: E402
from minicpm4.train.settings import OptimConfig  # noqa: E402

SHAPES = {
    "model.embed_tokens.weight": (50, 12),
    "model.layers.0.input_layernorm.weight": (12,),
    "model.layers.0.self_attn.q_proj.weight": (8, 12),
    "model.layers.0.mlp.gate_proj.weight": (31, 12),
    "model.layers.0.mlp.down_proj.weight": (12, 30),
    "lm_head.weight": (50, 12),
}


def parameters(seed: int = 0) -> dict[str, nn.Parameter]:
    torch.manual_seed(seed)
    return {name: nn.Parameter(torch.randn(shape)) for name, shape in SHAPES.items()}


def give_gradients(named: Mapping[str, nn.Parameter], step: int) -> None:
    made = torch.Generator().manual_seed(1000 + step)
    for parameter in named.values():
        parameter.grad = torch.randn(parameter.shape, generator=made) * 0.1


def train(named: dict[str, nn.Parameter], optimiser: Optimiser, steps: range) -> None:
    for step in steps:
        give_gradients(named, step)
        optimiser.set_rate(0.01 * (1 + step % 3))
        optimiser.step()


def test_adamw_is_torchs() -> None:
    ours, theirs = parameters(), parameters()
    optimiser = Optimiser(ours.items(), OptimConfig(weight_decay=0.1, beta2=0.9, eps=1e-6))
    groups = [
        {"params": [p], "weight_decay": 0.1 if "layers" in name and p.ndim == 2 else 0.0}
        for name, p in theirs.items()
    ]
    reference = torch.optim.AdamW(groups, lr=1.0, betas=(0.9, 0.9), eps=1e-6)
    for step in range(30):
        give_gradients(ours, step)
        give_gradients(theirs, step)
        rate = 0.01 / (1 + step)
        for group in reference.param_groups:
            group["lr"] = rate
        optimiser.set_rate(rate)
        optimiser.step()
        reference.step()
    for name, parameter in ours.items():
        torch.testing.assert_close(parameter, theirs[name], rtol=1e-6, atol=1e-7)


def quintic(values: np.ndarray) -> np.ndarray:
    """What five Newton-Schulz steps make of singular values, from Muon's polynomial."""
    x = values / np.linalg.norm(values)
    for _ in range(5):
        x = 3.4445 * x - 4.7750 * x**3 + 2.0315 * x**5
    return x


@pytest.mark.parametrize("shape", [(24, 24), (40, 12), (12, 40), (1, 9)])
def test_orthogonal_in_float64(shape: tuple[int, int]) -> None:
    """Against the singular value decomposition: vectors stay, values go through the polynomial, near 1."""
    matrix = np.random.default_rng(3).standard_normal(shape)
    u, s, v = np.linalg.svd(matrix, full_matrices=False)
    found = orthogonal(torch.from_numpy(matrix))
    np.testing.assert_allclose(found.numpy(), u * quintic(s) @ v, atol=1e-9)
    values = np.linalg.svd(found.numpy(), compute_uv=False)
    assert values.max() < 1.25 and np.median(values) > 0.65
    single = orthogonal(torch.from_numpy(matrix).float())
    np.testing.assert_allclose(single.numpy(), found.numpy(), atol=2e-4)


def test_orthogonal_of_nothing_and_of_nan() -> None:
    assert torch.equal(orthogonal(torch.zeros(3, 5)), torch.zeros(3, 5))
    assert torch.isnan(orthogonal(torch.tensor([[1.0, math.nan], [0.0, 1.0]]))).all()


@pytest.mark.parametrize("shape", [(30, 12), (12, 30)])
def test_muon_steps_in_float64(shape: tuple[int, int]) -> None:
    """Four steps against the update rule written with NumPy in float64."""
    name = "model.layers.0.mlp.gate_proj.weight"
    rng = np.random.default_rng(4)
    w, momentum = rng.standard_normal(shape), np.zeros(shape)
    parameter = nn.Parameter(torch.from_numpy(w.copy()).float())
    optimiser = Optimiser([(name, parameter)], OptimConfig(kind="muon", weight_decay=0.2, momentum=0.9))
    for _ in range(4):
        g = rng.standard_normal(shape)
        momentum = 0.9 * momentum + 0.1 * g
        u, s, v = np.linalg.svd(0.1 * g + 0.9 * momentum, full_matrices=False)
        w = w - 0.05 * 0.2 * w - 0.05 * math.sqrt(max(1, shape[0] / shape[1])) * (u * quintic(s) @ v)
        parameter.grad = torch.from_numpy(g).float()
        optimiser.set_rate(0.05)
        optimiser.step()
    np.testing.assert_allclose(parameter.detach().numpy(), w, atol=2e-4)


def test_muon_is_for_matrices_of_layers() -> None:
    rules = {name: rule_of(name, shape, "muon") for name, shape in SHAPES.items()}
    assert [name for name, rule in rules.items() if rule == "muon"] == [
        name for name in SHAPES if "_proj" in name
    ]
    assert {rule_of(name, shape) for name, shape in SHAPES.items()} == {"adamw"}


def test_factors_scale_the_step_but_not_the_decay() -> None:
    name = "model.layers.0.mlp.down_proj.weight"
    moved = []
    for factor in (1.0, 0.25):
        parameter = nn.Parameter(torch.ones(4, 4))
        optimiser = Optimiser([(name, parameter)], OptimConfig(weight_decay=0.5), {name: factor})
        parameter.grad = torch.ones(4, 4)
        optimiser.set_rate(0.1)
        optimiser.step()
        moved.append(0.95 - parameter.detach())  # 1 - rate * decay
    torch.testing.assert_close(moved[1], moved[0] / 4)
    torch.testing.assert_close(moved[0], torch.full((4, 4), 0.1))


def test_adamw_beside_muon_has_a_rate_of_its_own() -> None:
    named = parameters()
    optimiser = Optimiser(named.items(), OptimConfig(kind="muon", adamw_rate=0.1), {"lm_head.weight": 0.5})
    optimiser.set_rate(1.0)
    rates = {group["name"]: group["lr"] for group in optimiser.param_groups}
    assert rates["model.layers.0.mlp.down_proj.weight"] == 1.0
    assert rates["model.embed_tokens.weight"] == pytest.approx(0.1)
    assert rates["lm_head.weight"] == pytest.approx(0.05)


@pytest.mark.parametrize("kind", ["adamw", "muon"])
@pytest.mark.parametrize("how", ["tensors", "state_dict"])
def test_resuming_is_bit_identical(kind: str, how: str) -> None:
    config = OptimConfig(kind=kind)
    whole = parameters()
    train(whole, Optimiser(whole.items(), config), range(9))
    first = parameters()
    before = Optimiser(first.items(), config)
    train(first, before, range(4))
    second = {name: nn.Parameter(p.detach().clone()) for name, p in first.items()}
    after = Optimiser(second.items(), config)
    if how == "tensors":
        after.load_tensors({name: value.clone() for name, value in before.tensors().items()})
    else:
        after.load_state_dict(deepcopy(before.state_dict()))
    train(first, before, range(4, 6))  # the one that was saved from shares nothing with the one resumed
    train(second, after, range(4, 9))
    for name, parameter in second.items():
        assert torch.equal(parameter, whole[name]), name


def test_state_of_another_model_is_refused() -> None:
    named = parameters()
    optimiser = Optimiser(named.items(), OptimConfig())
    train(named, optimiser, range(1))
    state = optimiser.tensors()
    fresh = Optimiser(parameters().items(), OptimConfig())
    with pytest.raises(
        CheckpointError, match=r"lm_head.weight/first should have shape \(50, 12\), found is \(2,"
    ):
        fresh.load_tensors(state | {"lm_head.weight/first": torch.zeros(2, 3)})
    with pytest.raises(
        CheckpointError, match=r"lm_head.weight/second should have shape .*, found is nothing"
    ):
        fresh.load_tensors({k: v for k, v in state.items() if k != "lm_head.weight/second"})
    with pytest.raises(CheckpointError, match="1 tensors of no parameter, such as other/first"):
        fresh.load_tensors(state | {"other/first": torch.zeros(2)})


def test_parameters_without_a_gradient_stay() -> None:
    named = parameters()
    before = named["lm_head.weight"].detach().clone()
    optimiser = Optimiser(named.items(), OptimConfig())
    give_gradients(named, 0)
    named["lm_head.weight"].grad = None
    optimiser.set_rate(0.1)
    optimiser.step()
    assert torch.equal(named["lm_head.weight"], before)
    again = Optimiser(named.items(), OptimConfig())
    again.load_tensors(optimiser.tensors())
    assert again.tensors().keys() == optimiser.tensors().keys()


@pytest.mark.parametrize("limit", [0.0, 0.5, 1e6])
def test_clipping_by_the_global_norm(limit: float) -> None:
    named = parameters()
    give_gradients(named, 1)
    before = {name: p.grad.clone() for name, p in named.items()}
    exact = math.sqrt(sum(float(g.double().square().sum()) for g in before.values()))
    assert clip_gradients(named.values(), limit) == pytest.approx(exact, rel=1e-6)
    scale = limit / exact if 0 < limit < exact else 1.0
    for name, parameter in named.items():
        torch.testing.assert_close(parameter.grad, before[name] * scale)


def test_clipping_shows_what_is_not_finite() -> None:
    named = parameters()
    give_gradients(named, 2)
    named["lm_head.weight"].grad[3, 4] = math.inf
    kept = named["model.embed_tokens.weight"].grad.clone()
    assert clip_gradients(named.values(), 1.0) == math.inf
    assert torch.equal(named["model.embed_tokens.weight"].grad, kept)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "adam"}, "did you mean 'adamw'"),
        ({"beta1": 1.0}, "beta1 = 1.0 is not from 0 to below 1"),
        ({"eps": 0.0}, "eps = 0.0 is not positive"),
        ({"weight_decay": 1e300}, r"optimiser.weight_decay = 1e\+300 is above 1e\+06"),
        ({"adamw_rate": 1e300}, r"optimiser.adamw_rate = 1e\+300 is above 1e\+06"),
        ({"weight_decay": -0.1}, "weight_decay = -0.1 is negative"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        OptimConfig(**settings)


def test_nothing_to_train_is_refused() -> None:
    frozen = nn.Parameter(torch.ones(2), requires_grad=False)
    with pytest.raises(ConfigError, match="nothing to train"):
        Optimiser([("x", frozen)], OptimConfig())
