"""Heads that draft from a model's hidden states: what they compute, for an engine.

A head has one decoder layer. From features g of a text's positions, which are made of the model's states, and
the tokens after them, it gives features g' for the next positions, in place of states that the model has not
computed, and rows from which logits for the token after that are taken:

    g = fuse(states)
    (g'_i, r_i) = layer(g_i, token i + 1; rows before i)
    logits = head(r_i), for token i + 2

EAGLE-2 and multi-token prediction (``model/draft.py``): g is the final state; g' = r = h'.
EAGLE-3 (arXiv 2503.01840): g = fc(concat of the states that enter three layers), and the layer's attention
reads concat(norm1(E(token i + 1)), norm2(g_i)); g' is what the layer returns, r = norm(g'), and the head
has a vocabulary of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from minicpm4.config import ModelConfig
from minicpm4.kernels.contract import OpTable
from minicpm4.kernels.layer_weights import Linear
from minicpm4.kernels.step import Array, Floats, Ints, KVLayer, Step
from minicpm4.model.draft import DraftWeights, draft
from minicpm4.model.forward import logits
from minicpm4.model.ranks import FewTokens
from minicpm4.model.weights import LayerWeights, ModelWeights

__all__ = ["Eagle3Head", "Eagle3Weights", "Head", "StateHead"]


class Head(Protocol):
    """What an engine asks of a head. ``config``: of its layer; ``hidden``: after how many of the model's
    layers it wants states; ``tokens``: the model's token of each of its logits, None: these are the model's.
    """

    @property
    def config(self) -> ModelConfig: ...

    @property
    def hidden(self) -> tuple[int, ...]: ...

    @property
    def tokens(self) -> Ints | None: ...

    def fuse(self, states: Sequence[Array]) -> Array:
        """Features (n, width) of states (n, hidden), one array for each of ``hidden``."""
        ...

    def step(self, step: Step, following: Ints, features: Array, kv: KVLayer) -> tuple[Array, Array]:
        """g' and r (n, width) of the rows of ``step``; ``following``: the token after each."""
        ...

    def logits(self, rows: Array) -> Array:
        """Float32 logits (k, tokens) of rows r (k, width)."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class StateHead:
    """EAGLE-2's and multi-token prediction's: a ``draft`` layer beside the model of ``weights``."""

    ops: OpTable
    weights: ModelWeights
    layer: DraftWeights
    config: ModelConfig
    hidden: tuple[int, ...]
    few: FewTokens | None = None
    """Where it guesses among fewer tokens, the rows of the model's head for these."""

    @property
    def tokens(self) -> Ints | None:
        """See Head."""
        return None if self.few is None else self.few.tokens

    def fuse(self, states: Sequence[Array]) -> Array:
        """See Head."""
        return states[0]

    def step(self, step: Step, following: Ints, features: Array, kv: KVLayer) -> tuple[Array, Array]:
        """See Head."""
        found = draft(self.ops, self.weights, self.layer, step, following, features, kv)
        return found, found

    def logits(self, rows: Array) -> Array:
        """See Head."""
        return logits(self.ops, self.weights, rows, head=None if self.few is None else self.few.linear)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Eagle3Weights:
    """``fc`` (hidden, 3 hidden of the model); ``layer``: its projections to queries, keys and values read 2
    hidden, its attention's norm is that of embeddings; ``norm_hidden``, ``norm`` (hidden,); ``head`` (tokens,
    hidden)."""

    fc: Linear
    norm_hidden: Floats
    layer: LayerWeights
    norm: Floats
    head: Linear


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Eagle3Head:
    """EAGLE-3's, beside the model of ``weights``, whose embeddings it shares."""

    ops: OpTable
    weights: ModelWeights
    own: Eagle3Weights
    config: ModelConfig
    hidden: tuple[int, ...]
    tokens: Ints | None = None

    def fuse(self, states: Sequence[Array]) -> Array:
        """See Head."""
        return self.ops.linear(self.ops.join(states), self.own.fc)

    def step(self, step: Step, following: Ints, features: Array, kv: KVLayer) -> tuple[Array, Array]:
        """See Head."""
        ops, own, eps = self.ops, self.own, self.config.rms_norm_eps
        attention, n, d = own.layer.attention, step.num_rows, self.config.head_dim
        e = ops.embed(self.weights.embed, following, self.weights.config.scale_emb)
        both = ops.join([ops.rms_norm(e, attention.norm, eps), ops.rms_norm(features, own.norm_hidden, eps)])
        q = ops.linear(both, attention.q).reshape(n, -1, d)
        k, v = (ops.linear(both, one).reshape(n, kv.num_kv_heads, d) for one in (attention.k, attention.v))
        ops.append(ops.rotary(k, step.angles, step.cos, step.sin), v, kv, step)
        a = ops.attention(ops.rotary(q, step.angles, step.cos, step.sin), kv, step)
        x = features + ops.linear(a, attention.o)
        x = ops.add_linear(x, ops.gate_up(x, own.layer.feed_forward), own.layer.feed_forward.down, 1.0)
        return x, ops.rms_norm(x, own.norm, eps)

    def logits(self, rows: Array) -> Array:
        """See Head."""
        return self.ops.linear(rows, self.own.head)
