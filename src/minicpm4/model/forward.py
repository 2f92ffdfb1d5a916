"""The only decoder forward. Which machine computes, and with which weights, comes in as values.

Reference: MiniCPM4 technical report (arXiv 2506.07900), section 2; Llama is the special case in
which all three multipliers are 1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol

import numpy as np

from minicpm4.config import ModelConfig
from minicpm4.kernels.contract import OpTable
from minicpm4.kernels.layer_weights import AttentionWeights, Linear
from minicpm4.kernels.step import Accepted, Array, KVLayer, Step
from minicpm4.model.weights import LayerWeights, ModelWeights

Compute = Callable[[LayerWeights, Array], Array]
Run = Callable[[int, Compute, LayerWeights, Array], Array]
"""``run(index, compute, layer, x)`` returns ``compute(layer, x)``, x after layer ``index``, in its own
way."""
Keep = Callable[[int, Array], None]
"""``keep(count, x)`` is shown x (n, hidden) after ``count`` layers, valid during the call: 0, the embeddings;
after all, what ``forward`` returns. It copies what it wants."""


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

    @staticmethod
    def nbytes(config: ModelConfig, max_rows: int) -> int:
        """Bytes that they take."""
        width = config.num_attention_heads * config.head_dim
        return 4 * max_rows * (config.hidden_size + 2 * width + config.intermediate_size)


def forward(
    ops: OpTable,
    weights: ModelWeights,
    step: Step,
    cache: Cache,
    buffers: Buffers | None = None,
    run: Run | None = None,
    keep: Keep | None = None,
) -> Array:
    """Run all layers on the rows of ``step`` and return the final hidden states (n, hidden).

    Keys and values of the rows are appended to ``cache``. The result may live in ``buffers``: use it
    before the next call. ``run``: how each layer is run (None: directly); a trainer gathers weights or
    recomputes activations there. ``keep`` is shown what lies between the layers.
    """
    n, config = step.num_rows, weights.config
    x_out, *outs = _rows(buffers, n)
    x = ops.embed(weights.embed, step.ids, config.scale_emb, x_out)
    if ops.runs_layers and run is None and keep is None and not step.stored:
        listed = [
            (one.attention, one.feed_forward, cache.layer(index)) for index, one in enumerate(weights.layers)
        ]
        x = ops.layers(x, listed, step, config.residual_scale, outs)
    else:
        for index, layer in enumerate(weights.layers):
            if keep is not None:
                keep(index, x)
            compute = partial(decoder_layer, ops, step, cache.layer(index), config.residual_scale, outs)
            x = compute(layer, x) if run is None else run(index, compute, layer, x)
    x = ops.rms_norm(x, weights.norm, config.rms_norm_eps, x_out)
    if keep is not None:
        keep(len(weights.layers), x)
    return x


def settle(ops: OpTable, weights: ModelWeights, step: Step, accepted: Accepted, cache: Cache) -> None:
    """After a ``forward`` over trees of drafts make those that are accepted text, in every layer; see
    OpTable.settle."""
    for index in range(len(weights.layers)):
        ops.settle(cache.layer(index), step, accepted)


def decoder_layer(
    ops: OpTable,
    step: Step,
    kv: KVLayer,
    residual: float,
    outs: Sequence[Array | None],
    layer: LayerWeights,
    x: Array,
) -> Array:
    """Return x (n, hidden) after one layer; ``residual`` multiplies both branches, ``outs`` are buffers for
    queries, attention and feed-forward, or None."""
    q_out, a_out, h_out = outs
    a = attended(ops, layer.attention, kv, step, x, q_out, a_out)
    x = ops.add_linear(x, a, layer.attention.o, residual)
    h = ops.gate_up(x, layer.feed_forward, h_out)
    return ops.add_linear(x, h, layer.feed_forward.down, residual)


def attended(
    ops: OpTable,
    part: AttentionWeights,
    kv: KVLayer,
    step: Step,
    x: Array,
    q_out: Array | None = None,
    a_out: Array | None = None,
) -> Array:
    """Return what attention gives, (n, hq * d), of x (n, hidden); keys and values of the rows are in ``kv``
    then. Those that are stored come after the weights' own, and compressed keys that end in them are made
    anew; no others are there yet, since all rows of such a step are stored ones."""
    q = ops.qkv(x, part, kv, step, q_out)
    if step.stored:
        assert part.stored is not None
        k, v = (ops.put(one[step.positions]) for one in (part.stored.keys, part.stored.values))
        ops.append(k, v, kv, step)
    return ops.attention(q, kv, step, a_out)


def logits(
    ops: OpTable,
    weights: ModelWeights,
    hidden: Array,
    out: Array | None = None,
    head: Linear | None = None,
) -> Array:
    """Return float32 logits (rows, vocab) of final hidden states (rows, hidden); ``head``: instead of the
    model's, some of its rows."""
    scale = weights.config.logit_scale
    scaled = hidden if scale == 1.0 else hidden * scale
    return ops.linear(scaled, head or Linear(weight=weights.head), out)


def _rows(buffers: Buffers | None, n: int) -> tuple[Array | None, ...]:
    if buffers is None:
        return None, None, None, None
    return buffers.x[:n], buffers.q[:n], buffers.a[:n], buffers.h[:n]
