"""That rounding does what its options say, worked out here for the first matrices that rows reach: of
embeddings, which are looked up, and their norm. Reported errors of all matrices, from the rows themselves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from minicpm4.formats.names import EMBED
from minicpm4.formats.packing import unpack
from minicpm4.formats.quant import PackedTensor, QuantSpec
from minicpm4.kernels.registry import resolve
from minicpm4.model.source import OpenModel, open_model
from minicpm4.quantize.gptq import Hessian, gptq
from minicpm4.quantize.grid import search_scales, to_nearest
from minicpm4.quantize.layer import from_packed
from minicpm4.quantize.options import QuantizeOptions
from minicpm4.quantize.pipeline import quantize
from minicpm4.quantize.rounded import Rounded
from minicpm4.quantize.smooth import HELD
from minicpm4.quantize.walk import STAGES, Walk
from tests.fixtures.random_checkpoint import make_checkpoint

INT4 = QuantSpec(kind="int4", group_size=32)
NORMS = ("input_layernorm", "post_attention_layernorm")
UNTOLD = ("self_attn.v_proj", "self_attn.o_proj", "mlp.up_proj", "mlp.down_proj")
LAYER = "model.layers.0."
SKIP = 4
# Every text begins alike, and unlike what follows: statistics tell whether these positions are in them.
TEXTS = [[7] * SKIP + one for one in np.random.default_rng(3).integers(3, 320, (6, 60 - SKIP)).tolist()]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> OpenModel:
    """Every sixteenth column that reaches q, k, v, gate and up is large: its norm makes it so."""
    folder = make_checkpoint(tmp_path_factory.mktemp("first") / "model", seed=8)
    file = folder / "model.safetensors"
    data, found = bytearray(file.read_bytes()), open_model(folder)
    for index in range(found.config.num_hidden_layers):
        for norm in NORMS:
            values = found.checkpoint.load_vector(f"model.layers.{index}.{norm}.weight").astype(np.float32)
            old = values.tobytes()
            values[::16] *= 25
            at = data.index(old)
            data[at : at + len(old)] = values.tobytes()
    file.write_bytes(data)
    return open_model(folder)


def rounded(model: OpenModel, folder: Path, method: str, **options: Any) -> Rounded:
    settings = QuantizeOptions(group=32, method=method, **options)
    return quantize(model.checkpoint, model.config, settings, TEXTS, resolve("ref"), folder, {})


def weight(model: OpenModel, name: str) -> np.ndarray:
    return unpack(model.checkpoint.load(f"{name}.weight"))


def norm(model: OpenModel, name: str = LAYER + NORMS[0]) -> np.ndarray:
    return model.checkpoint.load_vector(f"{name}.weight").astype(np.float32)


def reaching(model: OpenModel) -> list[np.ndarray]:
    """Of each text the rows that reach q, k and v of the first layer."""
    embed, c = unpack(model.checkpoint.load(EMBED)) * np.float32(model.config.scale_emb), model.config
    found = []
    for ids in TEXTS:
        x = embed[ids].astype(np.float64)
        scaled = x / np.sqrt((x * x).mean(axis=1, keepdims=True) + c.rms_norm_eps) * norm(model)
        found.append(scaled.astype(np.float32))
    return found


def statistics(rows: list[np.ndarray]) -> Hessian:
    hessian = Hessian(rows[0].shape[1])
    for x in rows:
        hessian.add(x)
    return hessian


def relative(x: np.ndarray, weights: np.ndarray, other: np.ndarray) -> float:
    """Squared error of outputs, as a part of the squared outputs."""
    x64 = x.astype(np.float64)
    return float((np.square(x64 @ (other - weights).T).sum()) / np.square(x64 @ weights.T).sum())


@pytest.mark.parametrize(
    ("method", "act_order", "damping"),
    [
        ("gptq", False, 0.01),
        ("p-gptq", False, 0.01),
        ("gptq", True, 0.01),
        ("gptq", False, 0.3),
        ("p-gptq", True, 0.3),
    ],
)
def test_codes_are_those_of_gptq_with_these_options(
    model: OpenModel, tmp_path: Path, method: str, act_order: bool, damping: float
) -> None:
    made = rounded(model, tmp_path, method, skip_first=SKIP, act_order=act_order, damping=damping).layer(0)
    skip = SKIP if method == "p-gptq" else 0
    hessian = statistics([x[skip:] for x in reaching(model)])
    for name in STAGES[0]:
        wanted = gptq(weight(model, LAYER + name), hessian, INT4, damping=damping, act_order=act_order)
        found = made[f"{LAYER}{name}.weight"]
        np.testing.assert_array_equal(found.codes, wanted.codes, err_msg=name)
        np.testing.assert_array_equal(found.scale_floats(), wanted.scale_floats(), err_msg=name)
    np.testing.assert_array_equal(made[f"{LAYER}{NORMS[0]}.weight"].codes[0], norm(model))


def numbers(packed: PackedTensor) -> np.ndarray:
    """Without scales: those of v are divided afterwards where o is smoothed."""
    return packed.spec.row.numbers(packed.spec.row.unpack(packed.codes), packed.shifted)


def factors_of(size: np.ndarray, power: float) -> np.ndarray:
    found = size**power
    return (found / np.sqrt(found.max() * found.min())).astype(np.float32)


def test_factors_and_codes_are_those_of_awq(model: OpenModel, tmp_path: Path) -> None:
    made = rounded(model, tmp_path, "awq").layer(0)
    x = np.concatenate(reaching(model))
    weights = {name: weight(model, LAYER + name) for name in STAGES[0]}
    tried = [factors_of(np.abs(x).mean(axis=0), power) for power in np.arange(0, 1.01, 0.1)]
    errors = [
        sum(relative(x, w, unpack(to_nearest(w * one, INT4)) / one) for w in weights.values())
        for one in tried
    ]
    best = int(np.argmin(errors))
    assert best > 1 and errors[best] < 0.8 * errors[0]
    found = norm(model) / made[f"{LAYER}{NORMS[0]}.weight"].codes[0]
    np.testing.assert_allclose(found, tried[best], rtol=1e-4)
    counts = np.square(x / found, dtype=np.float64).sum(axis=0)
    counts = (counts / counts.mean()).astype(np.float32).reshape(-1, 32)
    for name, own in weights.items():
        groups = (own * found).reshape(len(own), -1, 32)
        scales = search_scales(groups, counts, INT4.row)[:, :, None]
        wanted = np.clip(np.round(groups / scales), -8, 7).reshape(own.shape)
        # Of two scales as good as each other either may be chosen.
        assert (numbers(made[f"{LAYER}{name}.weight"]) == wanted).mean() > 0.99, name


@pytest.fixture(scope="module")
def smoothed(model: OpenModel, tmp_path_factory: pytest.TempPathFactory) -> Rounded:
    return rounded(model, tmp_path_factory.mktemp("smoothed"), "s-gptq")


def test_smoothing_helps_gptq_where_columns_are_large(
    model: OpenModel, smoothed: Rounded, tmp_path: Path
) -> None:
    """By whole powers of tenths of the mean magnitudes in texts that are not held out; what is rounded then
    is what GPTQ makes of all rows."""
    plain = rounded(model, tmp_path, "gptq")
    assert {row.how for row in plain.rows} == {"gptq"}
    how = {row.name: row.how for row in smoothed.rows}
    rows, parts = reaching(model), smoothed.layer(0)
    seen = np.concatenate([one for i, one in enumerate(rows, 1) if i % HELD])
    found = norm(model) / parts[f"{LAYER}{NORMS[0]}.weight"].codes[0]
    tried = [factors_of(np.abs(seen).mean(axis=0), power) for power in np.arange(0, 0.75, 0.1)]
    apart = [float(np.abs(one / found - 1).max()) for one in tried]
    assert min(apart) < 1e-4 and np.argmin(apart) > 0
    hessian = statistics([x / found for x in rows])
    for name in STAGES[0]:
        assert how[LAYER + name] == "s-gptq"
        wanted = numbers(gptq(weight(model, LAYER + name) * found, hessian, INT4))
        # A weight halfway between two codes may fall either way, and moves those after it.
        assert (numbers(parts[f"{LAYER}{name}.weight"]) == wanted).mean() > 0.99, name
    before, after = ({row.name: row.error or 0.0 for row in one.rows} for one in (plain, smoothed))
    first = [f"model.layers.{i}.{name}" for i in range(2) for name in (*STAGES[0], *STAGES[2])]
    assert sum(after[name] for name in first) < 0.8 * sum(before[name] for name in first)


def test_what_is_said_to_be_as_by_gptq_alone_had_nothing_folded_in(
    model: OpenModel, smoothed: Rounded
) -> None:
    how = {row.name: row.how for row in smoothed.rows}
    for index in range(2):
        for names, own in ((STAGES[0], NORMS[0]), (STAGES[2], NORMS[1])):
            place = f"model.layers.{index}."
            folded = smoothed.layer(index)[f"{place}{own}.weight"].codes[0]
            kept = np.array_equal(folded, norm(model, place + own))
            assert {how[place + name] for name in names} == {"gptq" if kept else "s-gptq"}


@pytest.mark.parametrize("method", ["gptq", "p-gptq", "s-gptq", "s-p-gptq", "awq"])
def test_reported_errors_are_those_of_the_outputs(model: OpenModel, tmp_path: Path, method: str) -> None:
    """Of what reaches the matrices through all that was rounded before. Left out are those whose own rows, or
    columns, hold factors that no norm tells."""
    made = rounded(model, tmp_path, method)
    errors = {row.name: row.error for row in made.rows}
    skip, smoothed = SKIP if "p-" in method else 0, method not in ("gptq", "p-gptq")
    walk = Walk(resolve("ref"), model.config, model.checkpoint.load(EMBED), TEXTS)
    for index in range(model.config.num_hidden_layers):
        place = f"model.layers.{index}."
        parts = {name.removeprefix(place): one for name, one in made.layer(index).items()}
        layer = from_packed(model.config, parts).weights()
        for number, stage in enumerate(walk.stages(index, lambda layer=layer: layer)):
            rows: list[np.ndarray] = []
            stage(lambda x, rows=rows: rows.append(x[skip:].copy()))
            own = NORMS[number // 2]
            factors = norm(model, place + own) / parts[f"{own}.weight"].codes[0] if number % 2 == 0 else 1
            for name in STAGES[number]:
                if smoothed and name in UNTOLD:
                    continue
                wanted = weight(model, place + name) * factors
                by_hand = relative(np.concatenate(rows), wanted, unpack(parts[f"{name}.weight"]))
                assert errors[place + name] == pytest.approx(by_hand, rel=2e-3), place + name
