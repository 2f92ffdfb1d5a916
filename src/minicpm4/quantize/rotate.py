"""Rotation (QuaRot, arXiv 2404.00456), as far as it can be folded into the weights: the model computes the
same.

The residual stream is turned by an orthogonal matrix, and the values of each head by another. Outliers of a
few columns are then spread over all, which round better. Norms must be plain for that: their weights go
into the matrices that follow. A tied head gets rows of its own, since the last norm's weight is only the
head's."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from minicpm4.config import ModelConfig
from minicpm4.quantize.layer import Layer

__all__ = ["Rotation", "orthogonal"]

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]


_ROWS = 1024  # that are in float64 at a time


def orthogonal(size: int, seed: int) -> Doubles:
    """A random orthogonal matrix: a Hadamard matrix of the largest power of two that divides ``size``, with
    random signs, times (Kronecker) one drawn evenly of what is left."""
    rng = np.random.default_rng(seed)
    power = size & -size
    hadamard = np.ones((1, 1))
    while len(hadamard) < power:
        hadamard = np.block([[hadamard, hadamard], [hadamard, -hadamard]])
    hadamard /= np.sqrt(power)
    rest, triangle = np.linalg.qr(rng.standard_normal((size // power, size // power)))
    rest = rest * np.sign(np.diag(triangle))
    signs = rng.choice((-1.0, 1.0), size)
    return signs[:, None] * np.kron(rest, hadamard)


class Rotation:
    """The rotation of one model, the same for the same ``seed``."""

    def __init__(self, config: ModelConfig, seed: int = 0) -> None:
        self.stream = orthogonal(config.hidden_size, seed)
        self.values = orthogonal(config.head_dim, seed + 1)

    @staticmethod
    def config(config: ModelConfig) -> ModelConfig:
        """The configuration of the rotated model."""
        return replace(config, tie_word_embeddings=False)

    def embed(self, rows: Floats) -> Floats:
        """Embeddings (vocab, hidden)."""
        return _turned(rows, self.stream)

    def head(self, rows: Floats, norm: Floats) -> Floats:
        """The head (vocab, hidden), with the last norm's weight in it; that norm is then plain."""
        return _turned(rows, self.stream, norm)

    def stored(self, values: Floats) -> Floats:
        """Stored values (…, d) as those of a turned layer."""
        return (values @ self.values).astype(np.float32)

    def layer(self, layer: Layer) -> None:
        """Turn a layer; its two norms become plain."""
        floats = layer.floats
        for norm, names in (
            ("input_layernorm.weight", ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")),
            ("post_attention_layernorm.weight", ("mlp.gate_proj", "mlp.up_proj")),
        ):
            for name in names:
                floats[f"{name}.weight"] = _turned(layer.weight(name), self.stream, floats[norm])
            floats[norm] = np.ones_like(floats[norm])
        for name in ("self_attn.o_proj", "mlp.down_proj"):
            # Column by column it is the same product, with few of them in float64 at a time.
            floats[f"{name}.weight"] = np.ascontiguousarray(_turned(layer.weight(name).T, self.stream).T)
            if f"{name}.bias" in floats:
                floats[f"{name}.bias"] = (self.stream.T @ floats[f"{name}.bias"]).astype(np.float32)
        d = layer.config.head_dim
        v, o = layer.weight("self_attn.v_proj"), layer.weight("self_attn.o_proj")
        turned = np.einsum("de,hdi->hei", self.values, v.reshape(-1, d, v.shape[1]))
        floats["self_attn.v_proj.weight"] = turned.reshape(v.shape).astype(np.float32)
        if "self_attn.v_proj.bias" in floats:
            bias = floats["self_attn.v_proj.bias"].reshape(-1, d) @ self.values
            floats["self_attn.v_proj.bias"] = bias.reshape(-1).astype(np.float32)
        floats["self_attn.o_proj.weight"] = (
            (o.reshape(len(o), -1, d) @ self.values).reshape(o.shape).astype(np.float32)
        )


def _turned(rows: Floats, by: Doubles, norm: Floats | None = None) -> Floats:
    """``rows`` (n, columns), times ``norm`` (columns,), times the rotation ``by``, computed in float64."""
    found = np.empty((len(rows), by.shape[1]), np.float32)
    for start in range(0, len(rows), _ROWS):
        part = slice(start, start + _ROWS)
        found[part] = (rows[part] if norm is None else rows[part] * norm) @ by
    return found
