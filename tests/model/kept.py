"""Loading with kept weights, and comparing what was loaded."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from minicpm4.formats.quant import PackedTensor
from minicpm4.model import loader, packed_cache, packed_file
from minicpm4.model.loader import load_weights
from minicpm4.model.packed_cache import VARIABLE, weight_cache
from minicpm4.model.source import open_model
from minicpm4.model.weight_plan import plan_weights
from minicpm4.model.weight_set import WeightSet


def keep_in(place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Keep weights in ``place``, however quick they are to convert and however full the disk is."""
    monkeypatch.setenv(VARIABLE, str(place))
    monkeypatch.setattr(loader, "WORTH_KEEPING", 0.0)
    monkeypatch.setattr(packed_cache, "SPARE", (0, 0.0))
    return place


def load(folder: Path, weights: str = "int4", layout: str = "rows", **options: Any) -> WeightSet:
    found = open_model(folder)
    cache = weight_cache(found.checkpoint, weights, layout)
    plan = plan_weights(found.checkpoint, found.config, weights)
    return load_weights(found.checkpoint, found.config, plan, cache=cache, **options)


def matrices(model: WeightSet) -> Iterator[PackedTensor]:
    yield model.weights.embed
    yield model.weights.head
    for layer in model.weights.layers:
        for linear in (layer.attention.q, layer.attention.k, layer.attention.v, layer.attention.o):
            yield linear.weight
        for linear in (layer.feed_forward.gate, layer.feed_forward.up, layer.feed_forward.down):
            yield linear.weight


def assert_same(left: WeightSet, right: WeightSet) -> None:
    for one, other in zip(matrices(left), matrices(right), strict=True):
        assert (one.spec, one.shape, one.layout) == (other.spec, other.shape, other.layout)
        for part in packed_file.PARTS:
            np.testing.assert_array_equal(getattr(one, part), getattr(other, part))


def only(place: Path) -> Path:
    (file,) = place.iterdir()
    return file
