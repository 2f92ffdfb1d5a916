"""The only decoder forward. Which machine computes, and with which weights, comes in as values.

Reference: MiniCPM4 technical report (arXiv 2506.07900), section 2; Llama is the special case in
which all three multipliers are 1.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np

from minicpm4.config import ModelConfig
from minicpm4.kernels.contract import Array, KVLayer, Linear, OpTable, Step
from minicpm4.model.weights import ModelWeights


class Cache(Protocol):
    """Where a layer keeps its keys and values: KVPool, or a trainer's own."""

    def layer(self, index: int) -> KVLayer: ...


class Buffers:
    """Activations of one step, allocated once for ``max_rows`` rows: float32."""

    def __init__(self, config: ModelConfig, max_rows: int) -> None:
        width = config.num_attention_heads * config.head_dim
        self.x = np.empty((max_rows, config.hidden_size), np.float32)
        self.q = np.empty((max_rows, width), np.float32)
        self.a = np.empty((max_rows, width), np.float32)
        self.h = np.empty((max_rows, config.intermediate_size), np.float32)

    @property
    def nbytes(self) -> int:
        return sum(array.nbytes for array in (self.x, self.q, self.a, self.h))


def forward(
    ops: OpTable, weights: ModelWeights, step: Step, cache: Cache, buffers: Buffers | None = None
) -> Array:
    """Run all layers on the rows of ``step`` and return the final hidden states (n, hidden).

    Keys and values of the rows are appended to ``cache``. The result may live in ``buffers``: use it
    before the next call.
    """
    n, config = step.num_rows, weights.config
    x_out, q_out, a_out, h_out = _rows(buffers, n)
    x = ops.embed(weights.embed, step.ids, config.scale_emb, x_out)
    residual = config.residual_scale
    for index, layer in enumerate(weights.layers):
        kv = cache.layer(index)
        q = ops.qkv(x, layer.attention, kv, step, q_out)
        a = ops.attention(q, kv, step, a_out)
        x = ops.add_linear(x, a, layer.attention.o, residual)
        h = ops.gate_up(x, layer.feed_forward, h_out)
        x = ops.add_linear(x, h, layer.feed_forward.down, residual)
    return ops.rms_norm(x, weights.norm, config.rms_norm_eps, x_out)


def logits(ops: OpTable, weights: ModelWeights, hidden: Array, out: Array | None = None) -> Array:
    """Return float32 logits (rows, vocab) of final hidden states (rows, hidden)."""
    scale = weights.config.logit_scale
    scaled = hidden if scale == 1.0 else hidden * np.float32(scale)
    return ops.linear(scaled, Linear(weight=weights.head), out)


def _rows(buffers: Buffers | None, n: int) -> tuple[Array | None, ...]:
    if buffers is None:
        return None, None, None, None
    return buffers.x[:n], buffers.q[:n], buffers.a[:n], buffers.h[:n]
