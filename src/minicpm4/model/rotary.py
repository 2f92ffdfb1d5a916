"""Rotary angles: the inverse frequencies of every scaling, and a table of cosines and sines.

A scaling that depends on the sequence's length (dynamic, longrope with two different lists) is fixed
once, for the context that the engine plans: keys in the cache were rotated with one list and must
never meet queries rotated with another.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from minicpm4.config import ModelConfig, RopeScaling
from minicpm4.config.rope import longrope_attention

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]

GROWTH = 1024  # rows added to the table at a time, at least; computed at a time, at most


class RotaryTable:
    """Cosines and sines of positions 0, 1, … for one model and planned ``context`` (tokens)."""

    def __init__(self, config: ModelConfig, context: int) -> None:
        inverse, self.attention_factor = inverse_frequencies(config, context)
        self.inverse = inverse.astype(np.float32)
        self._rows = 0  # computed so far; the rest was never touched, so it takes no memory
        self._reserve(context)

    def tables(self, length: int) -> tuple[Floats, Floats]:
        """Return cos and sin, at least (length, head_dim / 2), attention factor included."""
        if length > len(self._cos):
            self._reserve(length)
        if length > self._rows:
            want = min(max(length, self._rows * 2, GROWTH), len(self._cos))
            for start in range(self._rows, want, GROWTH):
                self._compute(start, min(start + GROWTH, want))
            self._rows = want
        return self._cos[: self._rows], self._sin[: self._rows]

    @staticmethod
    def nbytes(config: ModelConfig, length: int) -> int:
        """Bytes that the tables take when grown to ``length``."""
        return 4 * max(length, GROWTH) * 2 * (config.head_dim // 2)

    def _reserve(self, length: int) -> None:
        """Have room for ``length`` rows."""
        tables = [np.empty((max(length, GROWTH), len(self.inverse)), np.float32) for _ in range(2)]
        if self._rows:
            tables[0][: self._rows], tables[1][: self._rows] = self.tables(self._rows)
        self._cos, self._sin = tables

    def _compute(self, start: int, stop: int) -> None:
        # Angles are rounded to float32 as in the reference implementations.
        angles = np.arange(start, stop, dtype=np.float32)[:, None] * self.inverse
        self._cos[start:stop] = np.cos(angles, dtype=np.float64) * self.attention_factor
        self._sin[start:stop] = np.sin(angles, dtype=np.float64) * self.attention_factor


def inverse_frequencies(config: ModelConfig, context: int) -> tuple[Doubles, float]:
    """Return inverse frequencies (head_dim / 2,) and the factor of cosines and sines."""
    scaling = config.rope_scaling
    base = _base(config.rope_theta, config.head_dim)
    if scaling is None:
        return base, 1.0
    original = scaling.original_max_position_embeddings or config.max_position_embeddings
    if scaling.rope_type == "linear":
        return base / scaling.factor, 1.0
    if scaling.rope_type == "dynamic":
        trained = config.max_position_embeddings
        return _dynamic(config, scaling, max(context, trained), trained), 1.0
    if scaling.rope_type == "longrope":
        return _longrope(config, scaling, base, context, original)
    if scaling.rope_type == "yarn":
        return _yarn(config, scaling, base, original)
    return _llama3(scaling, base, original), 1.0


def _base(theta: float, head_dim: int) -> Doubles:
    return np.asarray(theta ** -(np.arange(0, head_dim, 2, dtype=np.float64) / head_dim))


def _dynamic(config: ModelConfig, scaling: RopeScaling, length: int, trained: int) -> Doubles:
    """NTK-aware scaling: a larger base for sequences longer than the model's own length."""
    d = config.head_dim
    stretch = scaling.factor * length / trained - (scaling.factor - 1)
    return _base(config.rope_theta * stretch ** (d / (d - 2)), d)


def _longrope(
    config: ModelConfig, scaling: RopeScaling, base: Doubles, context: int, original: int
) -> tuple[Doubles, float]:
    factors = scaling.long_factor if context > original else scaling.short_factor
    attention = scaling.attention_factor
    if attention is None:
        attention = longrope_attention(config.max_position_embeddings / original, original)
    return base / np.asarray(factors), attention


def _yarn(config: ModelConfig, scaling: RopeScaling, base: Doubles, original: int) -> tuple[Doubles, float]:
    """YaRN (arXiv 2309.00071): fast dimensions keep their frequency, slow ones are interpolated."""
    d, theta = config.head_dim, config.rope_theta

    def dimension(rotations: float) -> float:
        return d * math.log(original / (rotations * 2 * math.pi)) / (2 * math.log(theta))

    low, high = dimension(scaling.beta_fast), dimension(scaling.beta_slow)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, d - 1)
    # Where bounds cross, as those of a short original length do, the ramp falls: so it is in transformers.
    ramp = np.clip((np.arange(d // 2) - low) / ((high - low) or 0.001), 0, 1)
    attention = scaling.attention_factor
    if attention is None:
        attention = _yarn_mscale(scaling)
    return base / scaling.factor * ramp + base * (1 - ramp), attention


def _yarn_mscale(scaling: RopeScaling) -> float:
    def mscale(weight: float) -> float:
        return 1.0 if scaling.factor <= 1 else 0.1 * weight * math.log(scaling.factor) + 1.0

    if scaling.mscale and scaling.mscale_all_dim:
        return mscale(scaling.mscale) / mscale(scaling.mscale_all_dim)
    return mscale(1.0)


def _llama3(scaling: RopeScaling, base: Doubles, original: int) -> Doubles:
    """Llama 3.1: slow dimensions divided by ``factor``, fast ones kept, a smooth ramp between."""
    turns = original * base / (2 * math.pi)
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    smooth = np.clip((turns - low) / (high - low), 0, 1)
    return np.asarray(base / scaling.factor * (1 - smooth) + base * smooth)
