"""A kind that nobody has heard of: a row of the table, its packing and its rounding are all that it takes,
and, for users to ask for it, its name in config/choices.py."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from minicpm4 import LLM, SamplingParams
from minicpm4.errors import ConfigError, UnsupportedError
from minicpm4.evals.random_model import RandomCheckpoint
from minicpm4.formats.kinds import KINDS, WeightKind
from minicpm4.formats.packing import detect_rounded, pack_from_float, unpack
from minicpm4.formats.quant import PackedTensor, QuantSpec, packed_nbytes
from minicpm4.kernels.ref import RefOps
from minicpm4.model import weight_plan
from minicpm4.model.weights import ModelWeights
from tests.evals.conftest import TINY
from tests.fixtures.loading import load_model
from tests.fixtures.normal import normal
from tests.fixtures.random_checkpoint import make_checkpoint
from tests.model.driver import Driver
from tests.model.kept import keep_in, load

# Eight weights of three bits lie in three bytes, and stand for numbers that are not evenly spaced.
LEVELS = (-1.0, -0.6, -0.3, -0.1, 0.1, 0.3, 0.6, 1.0)
SPEC = {"kind": "nf3", "group_size": 32}
IDS = list(range(4, 40))


def pack(codes: np.ndarray) -> np.ndarray:
    bits = np.unpackbits(codes.astype(np.uint8)[..., None], axis=-1, count=3, bitorder="little")
    return np.packbits(bits.reshape(len(codes), -1), axis=-1, bitorder="little")


def unpacked(packed: np.ndarray) -> np.ndarray:
    bits = np.unpackbits(packed, axis=-1, bitorder="little").reshape(len(packed), -1, 3)
    return bits @ np.array([1, 2, 4], np.uint8)


def nearest(xp: Any, groups: Any, least: float, most: float) -> tuple[Any, Any]:
    """The largest magnitude becomes 1, the others the level that is nearest."""
    scales = xp.asarray(xp.asarray(xp.amax(xp.abs(groups), axis=2), dtype=xp.float16), dtype=xp.float32)
    steps = groups / xp.where(scales == 0, 1.0, scales)[..., None]
    found = xp.full_like(steps, LEVELS[0])
    for low, high in pairwise(LEVELS):
        found = xp.where(steps > (low + high) / 2, xp.full_like(steps, high), found)
    return found, scales


@pytest.fixture(autouse=True)
def nf3(monkeypatch: pytest.MonkeyPatch) -> WeightKind:
    row = WeightKind(
        name="nf3",
        bits=3,
        codes=np.dtype(np.uint8),
        pack=pack,
        unpack=unpacked,
        columns=8,
        group=32,
        levels=LEVELS,
        least=LEVELS[0],
        most=LEVELS[-1],
        round=nearest,
        groups=(32,),
    )
    monkeypatch.setitem(KINDS, row.name, row)
    monkeypatch.setattr(weight_plan, "WEIGHT_CHOICES", (*weight_plan.WEIGHT_CHOICES, row.name))
    return row


def weights_of(folder: Path) -> ModelWeights:
    return load_model(folder, "nf3").weights


def test_it_packs_and_unpacks() -> None:
    weights = normal(20, 64)
    packed = pack_from_float(weights, QuantSpec(**SPEC))
    assert packed.codes.shape == (20, 24)
    assert packed.nbytes == packed_nbytes((20, 64), packed.spec) == 20 * (24 + 4)
    scales = np.abs(weights.reshape(20, 2, 32)).max(axis=2, keepdims=True)
    assert np.abs(unpack(packed) - weights).max() <= 0.21 * scales.max()
    assert len(np.unique(unpack(packed)[0, :32])) <= len(LEVELS)
    np.testing.assert_array_equal(unpack(pack_from_float(unpack(packed), packed.spec)), unpack(packed))


def test_training_rounds_to_what_is_packed() -> None:
    torch = pytest.importorskip("torch")
    from minicpm4.kernels.straight_through import rounded
    from minicpm4.train.recipe import parse_spec

    weights = normal(20, 64, 1)
    spec = parse_spec("nf3-g32", "stage 'a'")
    want = unpack(pack_from_float(weights, spec))
    np.testing.assert_array_equal(rounded(torch.from_numpy(weights), spec).numpy(), want)


def test_a_model_runs_in_it(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "model", num_hidden_layers=2)
    held = weights_of(folder)
    assert set(held.formats()) == {"nf3-g32", "int8-g64"}  # embeddings keep 8 bits
    plain = load_model(folder).weights
    for linear, want in zip(held.layers[0].linears(), plain.layers[0].linears(), strict=True):
        rounded = pack_from_float(unpack(want.weight), QuantSpec(**SPEC))
        np.testing.assert_array_equal(unpack(linear.weight), unpack(rounded))
    logits = Driver(RefOps(), held, context=64).feed(IDS)
    assert np.isfinite(logits).all()
    as_floats = Driver(RefOps(), _unpacked(held), context=64).feed(IDS)
    np.testing.assert_array_equal(logits, as_floats)


def _unpacked(weights: ModelWeights) -> ModelWeights:
    def plain(tensor: PackedTensor) -> PackedTensor:
        return PackedTensor(spec=QuantSpec(kind="f32"), shape=tensor.shape, codes=unpack(tensor))

    def layer(one: Any) -> Any:
        parts = [
            replace(
                part, **{n: replace(getattr(part, n), weight=plain(getattr(part, n).weight)) for n in names}
            )
            for part, names in ((one.attention, "qkvo"), (one.feed_forward, ("gate", "up", "down")))
        ]
        return replace(one, attention=parts[0], feed_forward=parts[1])

    embed = plain(weights.embed)
    head = embed if weights.head is weights.embed else plain(weights.head)
    return replace(weights, embed=embed, head=head, layers=tuple(map(layer, weights.layers)))


def test_the_engine_generates_with_it(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "model", num_hidden_layers=2)
    with LLM(folder, weights="nf3", backend="ref") as llm:
        out = llm.generate(IDS, SamplingParams(max_tokens=4, temperature=0.0))
    assert 1 <= len(out.token_ids) <= 4
    with pytest.raises(UnsupportedError, match="'cpu' has no kernels for weights of kind nf3"):
        LLM(folder, weights="nf3", backend="cpu")


def test_it_is_kept_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keep_in(tmp_path / "kept", monkeypatch)
    folder = make_checkpoint(tmp_path / "model", num_hidden_layers=2)
    first, again = load(folder, "nf3"), load(folder, "nf3")
    assert "kept for the next start" in first.notes and "kept ones" in again.notes
    for one, other in zip(first.weights.matrices(), again.weights.matrices(), strict=True):
        assert one.spec == other.spec
        np.testing.assert_array_equal(one.codes, other.codes)


def test_random_models_and_detection_know_it(monkeypatch: pytest.MonkeyPatch, nf3: WeightKind) -> None:
    spec = QuantSpec(**SPEC)
    drawn = RandomCheckpoint(TINY, lambda name, shape: spec).load("model.layers.0.mlp.down_proj.weight")
    values = unpack(drawn)
    assert values.std() == pytest.approx(1 / np.sqrt(drawn.shape[1]), rel=0.05)
    monkeypatch.setitem(KINDS, "nf3", replace(nf3, searched=(32,), most=2.0))
    rounded = unpack(pack_from_float(values, spec))
    stored = PackedTensor(spec=QuantSpec(kind="f32"), shape=drawn.shape, codes=rounded)
    assert detect_rounded(stored) == spec


def test_a_refusal_suggests_it() -> None:
    with pytest.raises(ConfigError, match=r"'nf4' is unknown.*nf3"):
        QuantSpec(kind="nf4", group_size=32)
