"""The op table of the C++ extension: thin calls that give it arrays of the right type.

The extension checks every shape and index itself and raises ValueError; a mistake there is a bug of
the caller, since users' input has been checked long before.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from minicpm4 import _cpu
from minicpm4.config import ModelConfig, SparseConfig
from minicpm4.errors import UnsupportedError
from minicpm4.formats.quant import PARTS, PackedTensor, packed_shapes
from minicpm4.kernels.contract import OpTable
from minicpm4.kernels.layer_weights import AttentionWeights, FeedForwardWeights, Linear
from minicpm4.kernels.scratch import call_every_op, untouched
from minicpm4.kernels.step import Accepted, Array, Floats, Ints, KVLayer, Selection, Step

isa_levels = _cpu.isa_levels
emulated_levels = _cpu.emulated_levels
cpu_features = _cpu.cpu_features
BUILD = _cpu.__file__

PANELS = "panels-3"  # raise it when to_panels writes anything else: weights are kept on disk
MOST_ROWS = 64  # of a step whose layers are one call
_NO_SPARSE = SparseConfig()


class CpuOps(OpTable):
    """Op table of the extension, with ``threads`` threads and the kernels of one instruction set.

    ``isa`` is one of ``isa_levels()``, by default the last, or of ``emulated_levels()``. ``narrow``:
    activations may be rounded to 8 bits. Calls from several Python threads are served one after another.
    ``measuring``: ops check their arguments, compute nothing, and count in ``reserved`` what they would keep.
    Raises ValueError for a level that this machine lacks; use ``registry.resolve`` for an error that
    tells users what to do.
    """

    name = "cpu"
    runs_layers = True
    weight_kinds = frozenset(_cpu.weight_kinds())

    def __init__(
        self,
        threads: int | None = None,
        isa: str | None = None,
        *,
        narrow: bool = False,
        measuring: bool = False,
    ) -> None:
        self._ctx = _cpu.Context(threads or 1, isa or isa_levels()[-1], narrow, measuring)
        self._narrow = narrow
        self._empty = untouched if measuring else np.empty
        self._panels = frozenset(self._ctx.panels)
        self.rows_alone = not self.isa.startswith("amx")  # whose tiles have an order of their own
        self.threads = int(self._ctx.threads)
        self.activations = ("auto", "int8") if self._ctx.can_narrow else ("auto",)
        count = f"{self.threads} thread" + ("s" if self.threads > 1 else "")
        self.description = f"cpu: {self.isa}, {count}" + (", 8-bit activations" if narrow else "")
        self.layout = "-".join([PANELS, *sorted(self._panels)]) if self._panels else "rows"

    @property
    def isa(self) -> str:
        return str(self._ctx.isa)

    @property
    def prepares(self) -> bool:
        """Whether ``prepare`` changes the layout of some weights."""
        return bool(self._panels)

    def check_supports(self, *, activations: str = "auto", **more: Any) -> None:
        super().check_supports(**more)
        if activations not in self.activations:
            raise UnsupportedError(
                f"{self.isa} kernels have no activations = {activations!r} "
                "(it takes AVX2 or better; avx512 computes in float32)",
                'use activations="auto"',
            )

    @property
    def reserved(self) -> int:
        """Bytes that the kernels keep between calls: the most that any call so far took."""
        return self._ctx.reserved

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
        """What the kernels would keep after such steps."""
        counted = CpuOps(self.threads, self.isa, narrow=self._narrow, measuring=True)
        call_every_op(counted, config, sparse, kv=kv, rows=rows, context=context, kinds=weights)
        return counted.reserved

    def prepare(self, tensor: PackedTensor) -> PackedTensor:
        spec = tensor.spec
        if spec.kind not in self._panels or spec.group_size % spec.row.panels or tensor.layout != "rows":
            return tensor
        shapes = packed_shapes(tensor.shape, spec, "panels")
        parts: dict[str, Any] = {
            part: self._empty(shapes[part], array.dtype) for part, array in tensor.parts.items()
        }
        _weight(tensor).to_panels(self._ctx, *(parts.get(part) for part in PARTS))
        return replace(tensor, layout="panels", **parts)

    def embed(self, table: PackedTensor, ids: Ints, scale: float, out: Array | None = None) -> Array:
        out = _result(out, (len(ids), table.shape[1]))
        self._ctx.embed(_ints(ids), _weight(table), scale, out)
        return out

    def rms_norm(self, x: Array, weight: Array, eps: float, out: Array | None = None) -> Array:
        out = _result(out, x.shape)
        rows = (-1, x.shape[-1]) if x.size else (0, x.shape[-1])
        self._ctx.rms_norm(_floats(x).reshape(rows), _floats(weight), eps, out.reshape(rows))
        return out

    def linear(self, x: Array, linear: Linear, out: Array | None = None) -> Array:
        out = _result(out, (x.shape[0], linear.weight.shape[0]))
        self._ctx.linear(_floats(x), _weight(linear.weight), linear.bias, out)
        return out

    def rotary(self, x: Array, positions: Ints, cos: Array, sin: Array) -> Array:
        x = _floats(x)
        self._ctx.rotary(x, _ints(positions), cos, sin)
        return x

    def append(self, k: Array, v: Array, kv: KVLayer, step: Step) -> None:
        self._ctx.append(_floats(k), _floats(v), _pages(kv), _rows(step))

    def settle(self, kv: KVLayer, step: Step, accepted: Accepted) -> None:
        sources, plain = accepted.moves(step)
        self._ctx.settle(_pages(kv), _rows(plain), sources)

    def select(self, q: Array, kv: KVLayer, step: Step) -> Selection:
        c = step.sparse
        assert c is not None
        n, hkv = step.num_rows, kv.num_kv_heads
        chosen = Selection(blocks=np.empty((n, hkv, c.budget), np.int32), counts=np.empty((n, hkv), np.int32))
        self._ctx.select(_floats(q), _pages(kv), _rows(step), chosen.blocks, chosen.counts)
        return chosen

    def attend(
        self, q: Array, kv: KVLayer, step: Step, selection: Selection | None, out: Array | None = None
    ) -> Array:
        out = _result(out, (q.shape[0], q.shape[1] * q.shape[2]))
        blocks, counts = (selection.blocks, selection.counts) if selection else (None, None)
        self._ctx.attend(_floats(q), _pages(kv), _rows(step), blocks, counts, out)
        return out

    def silu_mul(self, gate: Array, up: Array, out: Array | None = None) -> Array:
        out = _result(out, gate.shape)
        self._ctx.silu_mul(_floats(gate), _floats(up), out)
        return out

    def log_sum_exp(self, logits: Array) -> Array:
        out = np.empty(logits.shape[0], np.float32)
        self._ctx.log_sum_exp(_floats(logits), out)
        return out

    def top_k(self, logits: Array, k: int) -> tuple[Array, Array]:
        shape = (logits.shape[0], min(k, logits.shape[1]))
        values, columns = np.empty(shape, np.float32), np.empty(shape, np.int32)
        self._ctx.top_k(_floats(logits), values, columns)
        return values, columns

    # Coarse ops: the contract's compositions, each in one call of the extension.

    def qkv(self, x: Array, w: AttentionWeights, kv: KVLayer, step: Step, out: Array | None = None) -> Array:
        out = _result(out, (step.num_rows, w.q.weight.shape[0]))
        self._ctx.qkv(_floats(x), _qkv(w), _pages(kv), _rows(step), out)
        return out.reshape(step.num_rows, -1, kv.head_dim)

    def attention(self, q: Array, kv: KVLayer, step: Step, out: Array | None = None) -> Array:
        out = _result(out, (q.shape[0], q.shape[1] * q.shape[2]))
        self._ctx.attention(_floats(q), _pages(kv), _rows(step), out)
        return out

    def add_linear(self, x: Array, a: Array, linear: Linear, scale: float) -> Array:
        x = _floats(x)
        self._ctx.linear(_floats(a), _weight(linear.weight), linear.bias, x, scale, True)
        return x

    def gate_up(self, x: Array, w: FeedForwardWeights, out: Array | None = None) -> Array:
        out = _result(out, (x.shape[0], w.gate.weight.shape[0]))
        self._ctx.gate_up(_floats(x), _gate_up(w), out)
        return out

    def layers(
        self,
        x: Array,
        listed: Sequence[tuple[AttentionWeights, FeedForwardWeights, KVLayer]],
        step: Step,
        residual: float,
        outs: Sequence[Array | None],
    ) -> Array:
        x, n = _floats(x), step.num_rows
        first, second, _ = listed[0]
        heads, features = first.q.weight.shape[0], second.gate.weight.shape[0]
        q, a, h = (_result(out, (n, size)) for out, size in zip(outs, (heads, heads, features), strict=True))
        native = [
            (
                *(_qkv(one), _weight(one.o.weight), one.o.bias),
                *(_gate_up(two), _weight(two.down.weight), two.down.bias, _pages(kv)),
            )
            for one, two, kv in listed
        ]
        # No signal is heeded during a call: where layers take long, one of them a call.
        several = len(native) if n <= MOST_ROWS else 1
        for at in range(0, len(native), several):
            self._ctx.layers(x, native[at : at + several], _rows(step), residual, q, a, h)
        return x

    def _linears(self, x: Array, *products: tuple[Linear, Array]) -> list[Array]:
        """Products of one x with several matrices, which share what the kernels make of x."""
        listed = [(_weight(linear.weight), linear.bias, out) for linear, out in products]
        self._ctx.linears(_floats(x), listed)
        return [out for _, out in products]


def _floats(x: Array) -> Floats:
    return x if x.dtype == np.float32 and x.flags.c_contiguous else np.ascontiguousarray(x, np.float32)


def _ints(x: Array) -> Ints:
    return np.ascontiguousarray(x, np.int32)


def _result(out: Array | None, shape: tuple[int, ...]) -> Array:
    return np.empty(shape, np.float32) if out is None else out


def _weight(w: PackedTensor) -> _cpu.Weight:
    """The extension's view of a matrix, checked once."""
    found = w.native.get("cpu")
    if found is None:
        rows, cols = w.shape
        arrays = (getattr(w, part) for part in PARTS)
        found = _cpu.Weight(w.spec.kind, w.layout, rows, cols, w.spec.group_size, *arrays)
        w.native["cpu"] = found
    return found


def _qkv(w: AttentionWeights) -> _cpu.QkvWeights:
    """The extension's view of a layer's projections before attention."""
    found = w.native.get("cpu")
    if found is None:
        found = w.native["cpu"] = _cpu.QkvWeights(
            w.norm,
            w.eps,
            _weight(w.q.weight),
            w.q.bias,
            _weight(w.k.weight),
            w.k.bias,
            _weight(w.v.weight),
            w.v.bias,
            w.q_norm,
            w.k_norm,
        )
    return found


def _gate_up(w: FeedForwardWeights) -> _cpu.GateUpWeights:
    """The extension's view of a layer's first half of the feed-forward."""
    found = w.native.get("cpu")
    if found is None:
        gate, up = _weight(w.gate.weight), _weight(w.up.weight)
        found = w.native["cpu"] = _cpu.GateUpWeights(w.norm, w.eps, gate, w.gate.bias, up, w.up.bias)
    return found


def _rows(step: Step) -> _cpu.Rows:
    """The extension's view of a step."""
    found = step.native.get("cpu")
    if found is None:
        c, tree = step.sparse or _NO_SPARSE, step.tree
        found = step.native["cpu"] = _cpu.Rows(
            _ints(step.positions),
            _ints(step.cu_rows),
            _ints(step.page_table),
            step.cos,
            step.sin,
            None if tree is None else tree.ancestors,
            None if tree is None else _ints(tree.positions),
            step.sparse is not None,
            c.kernel_size,
            c.kernel_stride,
            c.init_blocks,
            c.local_blocks,
            c.topk,
            c.block_size,
            c.dense_below,
            c.lse_approx,
            c.use_nope,
        )
    return found


def _pages(kv: KVLayer) -> _cpu.Pages:
    """The extension's view of a layer's pages."""
    found = kv.native.get("cpu")
    if found is None:
        found = kv.native["cpu"] = _cpu.Pages(
            kv.keys,
            kv.values,
            kv.key_scales,
            kv.value_scales,
            kv.compressed,
            kv.compressed_scales,
            kv.coarse,
            kv.coarse_scales,
            kv.window,
        )
    return found
