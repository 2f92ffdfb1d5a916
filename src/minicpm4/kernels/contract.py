"""The contract between the decoder and whatever computes for it.

An op table has about a dozen ops. ``model/forward.py`` calls the coarse ones (``embed``, ``qkv``,
``attention``, ``add_linear``, ``gate_up``, ``rms_norm``, ``linear``); here they are composed from
primitives, and a table overrides a coarse op where fusing it pays. ``layers`` alone, which the extension has,
is composed in ``model/forward.py``, of coarse ones. Every op returns its result.
``out`` and in-place arguments are buffers of the caller that an op may use for it, so callers must
go on with what is returned, never with what they passed: a table with gradients returns new arrays.

Shapes: n rows (query tokens of all sequences of a step, one after another), s sequences, hq query
heads, hkv key/value heads, d head size, P page size in tokens. Activations are float32.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np

from minicpm4.config import ModelConfig, SparseConfig
from minicpm4.config.choices import KV_FORMATS
from minicpm4.errors import UnsupportedError
from minicpm4.formats.quant import PackedTensor
from minicpm4.kernels.layer_weights import AttentionWeights, FeedForwardWeights, Linear
from minicpm4.kernels.step import Accepted, Array, Ints, KVLayer, Selection, Step
from minicpm4.machine import available_memory


class OpTable(ABC):
    """All that the decoder asks of a device. See the module's docstring for buffers and shapes."""

    name: str
    description: str
    layout: str = "rows"
    """Names what ``prepare`` writes, its version included: weights are kept on disk under this name."""
    threads: int = 1
    """Threads of the host that it computes with."""
    on_host: bool = True
    """Whether its arrays are NumPy's, in the host's memory; if not, ``put`` and ``get`` copy."""
    kv_formats: tuple[str, ...] = KV_FORMATS
    """Formats of pages that it has kernels for."""
    reads_windows: bool = True
    """Whether it has kernels for layers with a sliding window."""
    reads_trees: bool = True
    """Whether it has kernels for steps that are trees of drafts."""
    rows_alone: bool = False
    """Whether a row's results have the same bits whatever rows are computed beside it."""
    weight_kinds: frozenset[str] | None = None
    """Kinds of weights that it has kernels for; None: all in ``formats/kinds.py``, by unpacking them."""
    runs_layers: bool = False
    """Whether it has ``layers``, which has no composition here."""
    widens: bool = False
    """Whether weights of kinds that name a wider one are to be held in that, and scales in one level."""
    activations: tuple[str, ...] = ("auto",)
    """Ways of rounding activations that it has kernels for; see ``registry.resolve``."""

    def check_supports(
        self,
        *,
        kv: str = "bf16",
        tree: bool = False,
        windows: bool = False,
        activations: str = "auto",
        weights: Collection[str] = (),
    ) -> None:
        """Raise UnsupportedError for what this table has no kernels for, before weights are read.
        ``weights``: their kinds."""
        who = f"backend {self.name!r}"
        if kv not in self.kv_formats:
            known = " or ".join(f"kv={name!r}" for name in self.kv_formats)
            raise UnsupportedError(
                f"{who} has no kernels for pages of {kv}", f"use {known}, or another backend"
            )
        for kind in sorted(weights):
            if self.weight_kinds is not None and kind not in self.weight_kinds:
                known = ", ".join(sorted(self.weight_kinds))
                raise UnsupportedError(
                    f"{who} has no kernels for weights of kind {kind}", f"use one of {known}"
                )
        if tree and not self.reads_trees:
            raise UnsupportedError(f"{who} has no kernels for trees", "check drafts one after another")
        if windows and not self.reads_windows:
            raise UnsupportedError(f"{who} has no kernels for sliding windows", 'use backend="cpu"')
        if activations not in self.activations:
            raise UnsupportedError(f"{who} has no activations = {activations!r}", 'use activations="auto"')

    def available_memory(self) -> int | None:
        """Bytes that can be taken where the table computes; None where the system does not tell."""
        return available_memory()

    def scratch_nbytes(
        self,
        config: ModelConfig,
        sparse: SparseConfig | None,
        *,
        kv: str,
        rows: int,
        context: int,
        weights: Collection[str],
    ) -> int:
        """Bytes that ops take beside their arguments and results, at most: in steps of up to ``rows`` rows of
        sequences of up to ``context`` tokens, with pages of ``kv`` and any of these kinds of ``weights``."""
        # What the compositions below make, the larger half of it at a time; with sparse attention the choice
        # and the compressed keys, in float32.
        heads, d = config.num_key_value_heads, config.head_dim
        floats = rows * (2 * config.hidden_size + 2 * heads * d + config.intermediate_size)
        if sparse is not None:
            budget = sparse.within(-(-context // sparse.block_size)).budget
            floats += heads * (rows * (budget + 1) + context // sparse.kernel_stride * d)
        return 4 * floats

    def zeros(self, shape: tuple[int, ...], dtype: Any) -> Array:
        """An array of zeros where the table computes; ``dtype`` NumPy's, uint16 standing for bf16."""
        return np.zeros(shape, dtype)

    def put(self, array: Array) -> Array:
        """``array``, the host's, where the table computes; uint16 is raw bf16."""
        return array

    def get(self, array: Array) -> Array:
        """An array of the table as NumPy's, bf16 as float32. Waits until it is computed."""
        return array

    def prepare(self, tensor: PackedTensor) -> PackedTensor:
        """Return a weight matrix in the layout that this table reads fastest: ``tensor`` itself, or
        new arrays with the same weights. Called once for each, when a model is loaded."""
        return tensor

    @staticmethod
    def refresh(part: Linear | AttentionWeights | FeedForwardWeights) -> None:
        """The arrays of ``part`` hold other weights, or have moved: bring what hangs on it up to date. Here
        it is dropped, to be made again; tables with copies of their own change these where they lie."""
        (part.weight if isinstance(part, Linear) else part).native.clear()

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
    def settle(self, kv: KVLayer, step: Step, accepted: Accepted) -> None:
        """After a step over trees, make ``accepted`` rows the next tokens of their sequences: move their keys
        and values, as they are stored, to the positions that follow the text, and compute every compressed
        key that ends there, as ``append`` would have, had these tokens been run one after another. What
        lies behind them counts as unwritten. Raises ValueError as ``Accepted.moves`` does."""

    @abstractmethod
    def select(self, q: Array, kv: KVLayer, step: Step) -> Selection:
        """Choose blocks for each row and kv head (InfLLM v2; exact rules in docs/architecture.md).

        q (n, hq, d) rotated. Rows for which ``step.sparse.is_dense_at(position)`` get count -1. Of a tree
        positions are places in the text (``Tree.positions``), and rows see the compressed keys of the text
        that their path makes: those that end before the tree as the pages hold them, the others as ``settle``
        would write them.
        """

    @abstractmethod
    def attend(
        self, q: Array, kv: KVLayer, step: Step, selection: Selection | None, out: Array | None = None
    ) -> Array:
        """Softmax attention, scale 1/sqrt(d), of q (n, hq, d) over the tokens at or before each row's
        position and in the layer's window, in all blocks (``selection`` None, as where there is a window) or
        the chosen ones; result (n, hq * d). A row of a tree reads the text that its path makes: a draft is in
        the block of its place in that."""

    def join(self, parts: Sequence[Array]) -> Array:
        """Return ``parts`` (n, width of each) side by side, (n, sum of widths)."""
        return np.concatenate(parts, axis=-1)

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
        """Select blocks where the step is sparse and the layer has no window, then attend; (n, hq * d)."""
        choose = step.sparse is not None and not kv.window
        return self.attend(q, kv, step, self.select(q, kv, step) if choose else None, out)

    def add_linear(self, x: Array, a: Array, linear: Linear, scale: float) -> Array:
        """Return ``x + scale * linear(a)``: a residual branch; x may be updated in place."""
        return x + scale * self.linear(a, linear)

    def gate_up(self, x: Array, w: FeedForwardWeights, out: Array | None = None) -> Array:
        """Return ``silu(gate(norm(x))) * up(norm(x))``, (n, ff)."""
        h = self.rms_norm(x, w.norm, w.eps)
        return self.silu_mul(self.linear(h, w.gate), self.linear(h, w.up), out)

    def layers(
        self,
        x: Array,
        listed: Sequence[tuple[AttentionWeights, FeedForwardWeights, KVLayer]],
        step: Step,
        residual: float,
        outs: Sequence[Array | None],
    ) -> Array:
        """x (n, hidden) after all ``listed`` layers, each with the bits of ``decoder_layer`` in
        ``model/forward.py``, which runs in its place where ``runs_layers`` is false; not of stored rows.
        ``residual`` and ``outs``: see there."""
        raise NotImplementedError
