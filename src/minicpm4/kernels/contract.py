"""The contract between the decoder and whatever computes for it.

An op table has about a dozen ops. ``model/forward.py`` calls the coarse ones (``embed``, ``qkv``,
``attention``, ``add_linear``, ``gate_up``, ``rms_norm``, ``linear``); here they are composed from
primitives, and a table overrides a coarse op where fusing it pays. Every op returns its result.
``out`` and in-place arguments are buffers of the caller that an op may use for it, so callers must
go on with what is returned, never with what they passed: a table with gradients returns new arrays.

Shapes: n rows (query tokens of all sequences of a step, one after another), s sequences, hq query
heads, hkv key/value heads, d head size, P page size in tokens. Activations are float32.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minicpm4.config import SparseConfig
from minicpm4.formats.quant import PackedTensor

Array = NDArray[Any]
Floats = NDArray[np.float32]
Ints = NDArray[np.int32]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Linear:
    """``y = x @ weight.T + bias``; weight (out, in), bias float32 (out,) or None."""

    weight: PackedTensor
    bias: Floats | None = None


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class AttentionWeights:
    """Attention of one layer; ``q_norm`` and ``k_norm`` (d,) are Qwen3's, applied to each head.
    ``native``: see PackedTensor."""

    norm: Floats
    q: Linear
    k: Linear
    v: Linear
    o: Linear
    eps: float
    q_norm: Floats | None = None
    k_norm: Floats | None = None
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


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class KVLayer:
    """The pages of one layer. A page is a block of InfLLM v2.

    ``keys`` (pages, hkv, d, P), transposed so that scores of neighbouring tokens are neighbours,
    and ``values`` (pages, hkv, P, d) are float32, or bf16 as raw uint16. As int8 they lie in pairs,
    ``keys`` (pages, hkv, d / 2, P, 2) of dimensions and ``values`` (pages, hkv, P / 2, d, 2) of
    tokens; each key and each value is its codes, -127 to 127, times ``key_scales`` or
    ``value_scales`` (pages, hkv, P) float32, NaN where a number of it was not finite.

    ``kernels`` (pages, hkv, P / kernel_stride, d) and ``coarse`` (pages, hkv, coarse_per_block, d)
    hold the compressed keys that END in the page; None without sparse attention (coarse: without
    the LSE approximation). They are float32 where keys are; elsewhere int16 codes of norm 32766 (or
    0), times ``kernel_scales`` and ``coarse_scales`` (no last axis) float32. Kernel j ends at token
    e = j * kernel_stride + kernel_size - 1 and sits in slot e % P // kernel_stride of page e // P;
    coarse kernels likewise with both lengths times 4. ``kernels/pages.py`` lists the arrays. ``native``
    is where op tables keep what they make of the arrays, by their name.
    """

    keys: Array
    values: Array
    key_scales: Floats | None = None
    value_scales: Floats | None = None
    kernels: Array | None = None
    kernel_scales: Floats | None = None
    coarse: Array | None = None
    coarse_scales: Floats | None = None
    native: dict[str, Any] = field(default_factory=dict, init=False, repr=False)

    @property
    def page_size(self) -> int:
        return int(self.keys.shape[3])

    @property
    def num_kv_heads(self) -> int:
        return int(self.keys.shape[1])

    @property
    def head_dim(self) -> int:
        return int(self.keys.shape[2] * (1 if self.key_scales is None else 2))


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Tree:
    """Drafts that a step checks together (EAGLE-2, arXiv 2406.16858): of each sequence the step's rows are
    a tree, at most 64, every row after its parent.

    A row reads all tokens before the step, and of the step's those that it follows: ``ancestors`` (n,)
    uint64 has bit b set where a row reads row b of its sequence's, itself included. ``positions`` (n,) are
    the rows' places in the text, for the rotary table: those of siblings are equal. Where their keys and
    values lie, ``Step.positions`` says, as ever.
    """

    ancestors: NDArray[np.uint64]
    positions: Ints

    MOST = 64


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Step:
    """The rows of one forward pass and where their sequences live.

    ``ids`` (n,) token ids. ``positions`` (n,): sequence j owns rows cu_rows[j] to cu_rows[j+1] - 1,
    at consecutive positions, the last tokens of its context. ``page_table`` (s, max pages): token t
    of sequence j is in page page_table[j, t // P]. ``cos`` and ``sin`` (at least the largest
    position + 1, d / 2) hold the rotary table, attention factor included. ``sparse`` None: dense.
    ``tree`` None: every row reads all before it. ``native`` as in KVLayer.
    """

    ids: Ints
    positions: Ints
    cu_rows: Ints
    page_table: Ints
    cos: Floats
    sin: Floats
    sparse: SparseConfig | None = None
    tree: Tree | None = None
    native: dict[str, Any] = field(default_factory=dict, init=False, repr=False)

    @property
    def num_rows(self) -> int:
        return int(self.ids.shape[0])

    @property
    def angles(self) -> Ints:
        """Positions in the rotary table, (n,)."""
        return self.positions if self.tree is None else self.tree.positions


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Selection:
    """Chosen blocks: ``blocks`` (n, hkv, budget) ascending, padded with -1; ``counts`` (n, hkv),
    -1 where a row reads every block up to its own."""

    blocks: Ints
    counts: Ints


class OpTable(ABC):
    """All that the decoder asks of a device. See the module's docstring for buffers and shapes."""

    name: str
    description: str
    layout: str = "rows"
    """Names what ``prepare`` writes, its version included: weights are kept on disk under this name."""

    def prepare(self, tensor: PackedTensor) -> PackedTensor:
        """Return a weight matrix in the layout that this table reads fastest: ``tensor`` itself, or
        new arrays with the same weights. Called once for each, when a model is loaded."""
        return tensor

    # Primitives: every table supplies these.

    @abstractmethod
    def embed(self, table: PackedTensor, ids: Ints, scale: float, out: Array | None = None) -> Array:
        """Return ``scale * table[ids]``, (n, hidden)."""

    @abstractmethod
    def rms_norm(self, x: Array, weight: Array, eps: float, out: Array | None = None) -> Array:
        """Return ``x / sqrt(mean(x**2) + eps) * weight`` over the last axis; x (..., width)."""

    @abstractmethod
    def linear(self, x: Array, linear: Linear, out: Array | None = None) -> Array:
        """Return ``x @ W.T + bias``; x (n, in), result (n, out)."""

    @abstractmethod
    def rotary(self, x: Array, positions: Ints, cos: Array, sin: Array) -> Array:
        """Rotate pairs (i, i + d/2) of x (n, heads, d) by the angles of ``positions``; in place or new.

        ``y_i = x_i cos - x_(i+d/2) sin``, ``y_(i+d/2) = x_(i+d/2) cos + x_i sin``.
        """

    @abstractmethod
    def append(self, k: Array, v: Array, kv: KVLayer, step: Step) -> None:
        """Store rotated keys and values (n, hkv, d) at their positions, rounded to the pages' type,
        and compute (from the rounded keys) every compressed key that ends in the new tokens:
        the mean of the keys it covers; with use_nope, of those keys rotated back. Of a tree no compressed
        keys: its tokens do not follow one another."""

    @abstractmethod
    def select(self, q: Array, kv: KVLayer, step: Step) -> Selection:
        """Choose blocks for each row and kv head (InfLLM v2; exact rules in docs/architecture.md).

        q (n, hq, d) rotated. Rows for which ``step.sparse.is_dense_at(position)`` get count -1. Rows of a
        tree see the compressed keys that end before the tree.
        """

    @abstractmethod
    def attend(
        self, q: Array, kv: KVLayer, step: Step, selection: Selection | None, out: Array | None = None
    ) -> Array:
        """Softmax attention, scale 1/sqrt(d), of q (n, hq, d) over the tokens at or before each row's
        position, in all blocks (``selection`` None) or the chosen ones; of the step's tokens those that
        ``step.tree`` lets it read; result (n, hq * d)."""

    @abstractmethod
    def silu_mul(self, gate: Array, up: Array, out: Array | None = None) -> Array:
        """Return ``gate * sigmoid(gate) * up``, (n, ff)."""

    @abstractmethod
    def log_sum_exp(self, logits: Array) -> Array:
        """Return log(sum(exp(row))) of each row, float32 (n,); -inf entries count as absent."""

    @abstractmethod
    def top_k(self, logits: Array, k: int) -> tuple[Array, Array]:
        """Return the k largest values of each row, descending, and their columns (lower first on a
        tie): float32 (n, k), int32 (n, k)."""

    # Coarse ops: composed here, overridden where fusing pays.

    def qkv(self, x: Array, w: AttentionWeights, kv: KVLayer, step: Step, out: Array | None = None) -> Array:
        """Norm, project, rotate, append; return the rotated queries (n, hq, d). x (n, hidden)."""
        n, d = step.num_rows, kv.head_dim
        h = self.rms_norm(x, w.norm, w.eps)
        q = self.linear(h, w.q, out).reshape(n, -1, d)
        k = self.linear(h, w.k).reshape(n, kv.num_kv_heads, d)
        v = self.linear(h, w.v).reshape(n, kv.num_kv_heads, d)
        if w.q_norm is not None and w.k_norm is not None:
            q = self.rms_norm(q, w.q_norm, w.eps)
            k = self.rms_norm(k, w.k_norm, w.eps)
        k = self.rotary(k, step.angles, step.cos, step.sin)
        self.append(k, v, kv, step)
        return self.rotary(q, step.angles, step.cos, step.sin)

    def attention(self, q: Array, kv: KVLayer, step: Step, out: Array | None = None) -> Array:
        """Select blocks where the step is sparse, then attend; result (n, hq * d)."""
        return self.attend(q, kv, step, self.select(q, kv, step) if step.sparse else None, out)

    def add_linear(self, x: Array, a: Array, linear: Linear, scale: float) -> Array:
        """Return ``x + scale * linear(a)``: a residual branch; x may be updated in place."""
        return x + scale * self.linear(a, linear)

    def gate_up(self, x: Array, w: FeedForwardWeights, out: Array | None = None) -> Array:
        """Return ``silu(gate(norm(x))) * up(norm(x))``, (n, ff)."""
        h = self.rms_norm(x, w.norm, w.eps)
        return self.silu_mul(self.linear(h, w.gate), self.linear(h, w.up), out)
