"""Smoothing by activations (AWQ, arXiv 2306.00978): columns that large activations reach are made larger
before rounding, so that they are rounded more finely, and what comes before is divided by as much. The
function stays.

    norm -> q, k, v        into the norm's weight          up -> down     into the rows of up
    v -> o                 into the rows of v              norm -> gate, up
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from minicpm4.config import ModelConfig
from minicpm4.formats.packing import unpack
from minicpm4.formats.quant import QuantSpec
from minicpm4.quantize.gptq import Hessian
from minicpm4.quantize.grid import to_nearest
from minicpm4.quantize.layer import Layer

__all__ = ["fold", "shared", "smooth"]

POWERS = np.arange(0, 1.01, 0.1)  # of the mean magnitude, tried
LEAST = 1e-4  # of a factor
ROWS = 512  # of a matrix, on which factors are tried: one power of eleven is chosen for all

Floats = NDArray[np.float32]


def smooth(
    layer: Layer, stages: Sequence[Sequence[str]], hessians: Sequence[Hessian], specs: dict[str, QuantSpec]
) -> None:
    """Fold into each of ``stages`` of ``layer`` the factors that make the rounded outputs closest.
    ``hessians``: of what reaches it; ``specs``: what its matrices will be rounded to."""
    for names, hessian in zip(stages, hessians, strict=True):
        share = shared(layer.config, names)
        size = np.maximum(_alike(hessian.mean_size, share, layer.config.head_dim), 1e-8)
        rows = {name: _spread(layer.weight(name)) for name in names if name in specs}
        right = {name: hessian.squared(weight) for name, weight in rows.items()}
        tried = [(_error(rows, right, hessian, _factors(size, power), specs), power) for power in POWERS]
        power = min(tried)[1]
        if power:
            fold(layer, names, _factors(size, power), share)


def _factors(size: NDArray, power: float) -> Floats:
    found = size**power
    found /= np.sqrt(found.max() * found.min())
    return np.maximum(found, LEAST).astype(np.float32)


def _error(
    rows: Mapping[str, Floats],
    right: Mapping[str, float],
    hessian: Hessian,
    factors: Floats,
    specs: dict[str, QuantSpec],
) -> float:
    """Output error of ``rows`` of matrices rounded to nearest after ``factors``, each as a part of its
    squared outputs ``right``."""
    total = 0.0
    for name, weight in rows.items():
        rounded = unpack(to_nearest(weight * factors, specs[name])) / factors
        total += hessian.squared(rounded - weight) / right[name] if right[name] > 0 else 0.0
    return total


def _spread(weight: Floats) -> Floats:
    """At most ROWS rows, evenly spread."""
    return np.ascontiguousarray(weight[:: -(-len(weight) // ROWS)])


def shared(config: ModelConfig, names: Sequence[str]) -> int:
    """How many columns of ``names``, matrices of a stage, come from one row before them: of o those of all
    query heads that read the same values."""
    return config.num_attention_heads // config.num_key_value_heads if names == ("self_attn.o_proj",) else 1


def _alike(size: NDArray, share: int, d: int) -> NDArray:
    """Magnitudes of columns, those that come from one row their mean."""
    if share == 1:
        return size
    heads = size.reshape(-1, share, d)
    return np.broadcast_to(heads.mean(axis=1, keepdims=True), heads.shape).reshape(-1)


def fold(layer: Layer, names: Sequence[str], factors: Floats, share: int) -> None:
    """Multiply the columns of the matrices ``names`` of a stage by ``factors`` (columns,), and divide what
    makes these columns by as much. ``share``: see ``shared``; the factors of columns that come from one row
    are equal."""
    for name in names:
        layer.weight(name)[...] *= factors
    before = {
        "self_attn.q_proj": "input_layernorm.weight",
        "mlp.gate_proj": "post_attention_layernorm.weight",
    }
    if names[0] in before:
        layer.floats[before[names[0]]] /= factors
        return
    source = "self_attn.v_proj" if names[0] == "self_attn.o_proj" else "mlp.up_proj"
    rows = factors if share == 1 else factors.reshape(-1, share, layer.config.head_dim)[:, 0].reshape(-1)
    layer.weight(source)[...] /= rows[:, None]
    if f"{source}.bias" in layer.floats:
        layer.floats[f"{source}.bias"] /= rows
