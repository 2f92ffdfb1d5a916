"""Weights as ops are given them: matrices with their bias, and those of a layer's two halves."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minicpm4.formats.quant import PackedTensor

Floats = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Linear:
    """``y = x @ weight.T + bias``; weight (out, in), bias float32 (out,) or None."""

    weight: PackedTensor
    bias: Floats | None = None


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class StoredKV:
    """Keys, rotated, and values (n, hkv, d) of the first n tokens of a text in one layer, float32: see
    model/stored_prefix.py."""

    keys: Floats
    values: Floats


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class AttentionWeights:
    """Attention of one layer; ``q_norm`` and ``k_norm`` (d,) are Qwen3's, applied to each head; ``stored``:
    what ``Step.stored`` puts in the place of keys and values. ``native``: see PackedTensor."""

    norm: Floats
    q: Linear
    k: Linear
    v: Linear
    o: Linear
    eps: float
    q_norm: Floats | None = None
    k_norm: Floats | None = None
    stored: StoredKV | None = None
    native: dict[str, Any] = field(default_factory=dict, init=False, repr=False)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class FeedForwardWeights:
    """Gated feed-forward of one layer: down(silu(gate(x)) * up(x)). ``native``: see PackedTensor."""

    norm: Floats
    gate: Linear
    up: Linear
    down: Linear
    eps: float
    native: dict[str, Any] = field(default_factory=dict, init=False, repr=False)
