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

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]

GROWTH = 1024  # rows added to the table at a time, at least


class RotaryTable:
    """Cosines and sines of positions 0, 1, … for one model and planned ``context`` (tokens)."""

    def __init__(self, config: ModelConfig, context: int) -> None:
        inverse, self.attention_factor = inverse_frequencies(config, context)
        self.inverse = inverse.astype(np.float32)
        self._context = context
        self._cos = np.empty((0, config.head_dim // 2), np.float32)
        self._sin = self._cos

    def tables(self, length: int) -> tuple[Floats, Floats]:
        """Return cos and sin, at least (length, head_dim / 2), attention factor included."""
        have = len(self._cos)
        if length > have:
            want = max(length, min(have * 2, self._context), GROWTH)
            # Angles are rounded to float32 as in the reference implementations.
            angles = np.arange(have, want, dtype=np.float32)[:, None] * self.inverse
            cos, sin = np.cos(angles, dtype=np.float64), np.sin(angles, dtype=np.float64)
            self._cos = np.concatenate([self._cos, (cos * self.attention_factor).astype(np.float32)])
            self._sin = np.concatenate([self._sin, (sin * self.attention_factor).astype(np.float32)])
        return self._cos, self._sin

    def nbytes(self, length: int) -> int:
        """Bytes that the tables take when grown to ``length``."""
        return max(length, GROWTH) * 2 * self.inverse.nbytes


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
        return _dynamic(config, scaling, max(context, original), original), 1.0
    if scaling.rope_type == "longrope":
        return _longrope(config, scaling, base, context, original)
    if scaling.rope_type == "yarn":
        return _yarn(config, scaling, base, original)
    return _llama3(scaling, base, original), 1.0


def _base(theta: float, head_dim: int) -> Doubles:
    return np.asarray(theta ** -(np.arange(0, head_dim, 2, dtype=np.float64) / head_dim))


def _dynamic(config: ModelConfig, scaling: RopeScaling, length: int, original: int) -> Doubles:
    """NTK-aware scaling: a larger base for longer sequences."""
    d = config.head_dim
    stretch = scaling.factor * length / original - (scaling.factor - 1)
    return _base(config.rope_theta * stretch ** (d / (d - 2)), d)


def _longrope(
    config: ModelConfig, scaling: RopeScaling, base: Doubles, context: int, original: int
) -> tuple[Doubles, float]:
    factors = scaling.long_factor if context > original else scaling.short_factor
    stretch = config.max_position_embeddings / original
    attention = scaling.attention_factor
    if attention is None:
        attention = math.sqrt(1 + math.log(stretch) / math.log(original)) if stretch > 1 else 1.0
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
    ramp = np.clip((np.arange(d // 2) - low) / max(high - low, 0.001), 0, 1)
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
