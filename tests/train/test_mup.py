"""muP: activations do not depend on the width, and do as soon as one of its rules is left out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache

import pytest

torch = pytest.importorskip("torch")

from minicpm4.errors import ConfigError  # noqa: E402
from minicpm4.formats.names import expected_tensors  # noqa: E402
from minicpm4.plot import chart  # noqa: E402
from minicpm4.train.loss import next_token_loss  # noqa: E402
from minicpm4.train.model import TrainableModel  # noqa: E402
from minicpm4.train.mup import CoordinateCheck, CoordinatePoint, MuP, activations, measure, scaled  # noqa: E402
from minicpm4.train.optim import Optimiser  # noqa: E402
from minicpm4.train.settings import OptimConfig  # noqa: E402
from tests.fixtures.tiny import tiny_config  # noqa: E402
from tests.train.batches import batch  # noqa: E402

WIDTHS, STEPS = (64, 128, 256), 4
BASE = tiny_config(
    vocab_size=64,
    max_position_embeddings=64,
    scale_emb=12.0,
    scale_depth=1.4,
    dim_model_base=64.0,
)


def trial(kind: str, tied: bool, without: str, width: int, seed: int) -> tuple[Callable, Callable]:
    """A model of ``width`` and its training step; one of muP's rules may be left out."""
    mup = MuP(base_width=64)
    config = replace(scaled(BASE, width), tie_word_embeddings=tied)
    if without == "logits":
        config = replace(config, dim_model_base=float(width))
    plain = without == "init"
    model = TrainableModel.new(config, seed, (lambda name, config: 0.1) if plain else mup.init_std)
    shapes = [(name, p.shape) for name, p in model.named_parameters()]
    factors = {} if without == "rate" else mup.factors(shapes, config, kind)
    settings = OptimConfig(kind=kind, weight_decay=0.0, adamw_rate=0.1 if kind == "muon" else 1.0)
    optimiser = Optimiser(model.named_parameters(), settings, factors)
    given = batch([24, 40], BASE.vocab_size, seed)

    def step() -> None:
        targets = torch.from_numpy(given.targets)
        loss = next_token_loss(model(given), model.head(), targets, scale=config.logit_scale)
        model.zero_grad()
        (loss.total / loss.count).backward()
        optimiser.set_rate(0.02 if kind == "muon" else 0.003)
        optimiser.step()

    return lambda: activations(model, given), step


@cache
def checked(kind: str, tied: bool, without: str = "") -> CoordinateCheck:
    return measure(WIDTHS, lambda w, seed: trial(kind, tied, without, w, seed), steps=STEPS, seeds=2)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_activations_do_not_depend_on_the_width(kind: str, tied: bool) -> None:
    check = checked(kind, tied)
    for step in range(1, STEPS + 1):
        slopes = check.slopes(step)
        # Logits of a fresh head are random and shrink as 1 / sqrt(width); so does what is left of that.
        assert abs(slopes.pop("logits")) < 0.3, step
        assert max(slopes.values(), key=abs) == pytest.approx(0, abs=0.12), (step, slopes)
    sizes = check.slopes(STEPS, "size")
    sizes.pop("logits")
    assert max(sizes.values(), key=abs) == pytest.approx(0, abs=0.05)
    logits = dict(check.curves(STEPS)["logits"])
    assert logits[256.0] > 0.1, "nothing was learnt"


@pytest.mark.parametrize(
    ("kind", "without", "where"),
    [
        ("adamw", "rate", "layer 1"),
        ("adamw", "init", "layer 1"),
        ("adamw", "logits", "logits"),
        ("muon", "init", "layer 1"),
        ("muon", "logits", "logits"),
    ],
)
@pytest.mark.parametrize("tied", [False, True])
def test_without_one_of_the_rules_they_grow(kind: str, without: str, where: str, tied: bool) -> None:
    assert checked(kind, tied, without).slopes(STEPS)[where] > 0.4


def test_init_and_rates_by_name() -> None:
    mup, config = MuP(base_width=64, std=0.1), scaled(BASE, 256)
    matrix, vector = "model.layers.1.mlp.down_proj.weight", "model.layers.1.input_layernorm.weight"
    assert mup.ratio(config) == 4.0
    assert mup.init_std(matrix, config) == 0.05
    assert mup.init_std("model.embed_tokens.weight", config) == mup.init_std("lm_head.weight", config) == 0.1
    shapes = list(expected_tensors(config).items())
    adamw, muon = mup.factors(shapes, config), mup.factors(shapes, config, "muon")
    assert adamw[matrix] == 0.25 and adamw[vector] == 1.0
    assert adamw["lm_head.weight"] == adamw["model.embed_tokens.weight"] == 1.0
    assert set(muon.values()) == {1.0} and adamw.keys() == muon.keys() == dict(shapes).keys()
    assert set(mup.factors(shapes, BASE).values()) == {1.0}


def test_scaled_keeps_the_shape_of_heads() -> None:
    wide = scaled(BASE, 160)
    assert (wide.hidden_size, wide.intermediate_size) == (160, 320)
    assert (wide.num_attention_heads, wide.num_key_value_heads, wide.head_dim) == (10, 5, 16)
    assert (wide.scale_emb, wide.scale_depth, wide.dim_model_base) == (12.0, 1.4, 64.0)
    with pytest.raises(
        ConfigError, match="num_key_value_heads = 2 at hidden size 64 has no counterpart at 80"
    ):
        scaled(BASE, 80)


def test_curves_and_slopes_of_known_points() -> None:
    points = [
        CoordinatePoint(width=w, step=1, place="here", size=3.0, change=0.1 * w**0.5 * noise)
        for w in (16, 64)
        for noise in (0.9, 1.1)
    ]
    check = CoordinateCheck(points)
    assert dict(check.curves(1)["here"]) == pytest.approx({16.0: 0.4, 64.0: 0.8})
    assert check.slopes(1) == {"here": pytest.approx(0.5)}
    assert check.slopes(1, "size") == {"here": pytest.approx(0.0)}
    assert chart("Coordinates", check.curves(1), "width", "change").count("<circle") == 2


def test_what_shows_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match="show no slope"):
        measure([64, 64], lambda width, seed: (dict, lambda: None), steps=1)
    with pytest.raises(ConfigError, match="base width = 0 is not positive"):
        MuP(base_width=0)
    with pytest.raises(ConfigError, match=r"std = -0.1 is not positive"):
        MuP(std=-0.1)
