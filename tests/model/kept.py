"""Loading with kept weights, and comparing what was loaded."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from minicpm4.formats import open_checkpoint
from minicpm4.formats.quant import PackedTensor
from minicpm4.model import packed_file
from minicpm4.model.loader import LoadedModel, load_weights, read_config
from minicpm4.model.packed_cache import weight_cache


def load(folder: Path, weights: str = "int4", layout: str = "rows", **options: Any) -> LoadedModel:
    checkpoint = open_checkpoint(folder)
    cache = weight_cache(checkpoint, weights, layout)
    return load_weights(checkpoint, read_config(checkpoint), weights, cache=cache, **options)


def matrices(model: LoadedModel) -> Iterator[PackedTensor]:
    yield model.weights.embed
    yield model.weights.head
    for layer in model.weights.layers:
        for linear in (layer.attention.q, layer.attention.k, layer.attention.v, layer.attention.o):
            yield linear.weight
        for linear in (layer.feed_forward.gate, layer.feed_forward.up, layer.feed_forward.down):
            yield linear.weight


def assert_same(left: LoadedModel, right: LoadedModel) -> None:
    for one, other in zip(matrices(left), matrices(right), strict=True):
        assert (one.spec, one.shape, one.layout) == (other.spec, other.shape, other.layout)
        for part in packed_file.PARTS:
            np.testing.assert_array_equal(getattr(one, part), getattr(other, part))


def only(place: Path) -> Path:
    (file,) = place.iterdir()
    return file
