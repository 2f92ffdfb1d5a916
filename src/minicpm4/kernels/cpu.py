"""The op table of the C++ extension: thin calls that give it arrays of the right type.

The extension checks every shape and index itself and raises ValueError; a mistake there is a bug of
the caller, since users' input has been checked long before.
"""

from __future__ import annotations

import math
import threading
from dataclasses import replace

import numpy as np

from minicpm4 import _cpu
from minicpm4.config import SparseConfig
from minicpm4.formats.quant import PANEL_GROUP, PackedTensor, packed_shapes
from minicpm4.kernels.contract import (
    Array,
    AttentionWeights,
    FeedForwardWeights,
    Floats,
    Ints,
    KVLayer,
    Linear,
    OpTable,
    Selection,
    Step,
)

isa_levels = _cpu.isa_levels
cpu_features = _cpu.cpu_features
BUILD = _cpu.__file__

_NO_SPARSE = SparseConfig()


class CpuOps(OpTable):
    """Op table of the extension, with ``threads`` threads and the kernels of one instruction set.

    ``isa`` is one of ``isa_levels()``, by default the last. Calls from several Python threads are
    served one after another. Raises ValueError for a level that this machine lacks; use
    ``registry.resolve`` for an error that tells users what to do.
    """

    name = "cpu"

    def __init__(self, threads: int | None = None, isa: str | None = None) -> None:
        self._ctx = _cpu.Context(threads or 1, isa or isa_levels()[-1])
        self._local = threading.local()
        count = f"{self.threads} thread" + ("s" if self.threads > 1 else "")
        self.description = f"cpu: {self.isa}, {count}"

    @property
    def threads(self) -> int:
        return int(self._ctx.threads)

    @property
    def isa(self) -> str:
        return str(self._ctx.isa)

    @property
    def prepares(self) -> bool:
        """Whether ``prepare`` changes the layout of grouped weights."""
        return bool(self._ctx.panels)

    def prepare(self, tensor: PackedTensor) -> PackedTensor:
        spec = tensor.spec
        if not (self.prepares and tensor.layout == "rows" and spec.group_size):
            return tensor
        if spec.group_size % PANEL_GROUP:
            return tensor
        shape, groups = packed_shapes(tensor.shape, spec, "panels")
        codes = np.empty(shape, tensor.codes.dtype)
        scales, offsets = (
            None if part is None else np.empty(groups, part.dtype) for part in (tensor.scales, tensor.offsets)
        )
        _weight(tensor).to_panels(self._ctx, codes, scales, offsets)
        return replace(tensor, codes=codes, scales=scales, offsets=offsets, layout="panels")

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
        c = step.sparse
        # Without a sparse config there is nothing to compress with, whatever the pages have room for.
        compressed = _compressed(kv) if c else (None, None, None, None)
        c = c or _NO_SPARSE
        self._ctx.append(
            _floats(k),
            _floats(v),
            *_pages(kv),
            *compressed,
            *_rows(step),
            step.cos,
            step.sin,
            c.kernel_size,
            c.kernel_stride,
            c.use_nope,
        )

    def select(self, q: Array, kv: KVLayer, step: Step) -> Selection:
        c = step.sparse
        assert c is not None and kv.kernels is not None
        n, hkv = step.num_rows, kv.num_kv_heads
        chosen = Selection(blocks=np.empty((n, hkv, c.budget), np.int32), counts=np.empty((n, hkv), np.int32))
        self._ctx.select(
            _floats(q),
            kv.kernels,
            kv.kernel_scales,
            kv.coarse,
            kv.coarse_scales,
            *_rows(step),
            step.cos,
            step.sin,
            c.kernel_size,
            c.kernel_stride,
            c.init_blocks,
            c.local_blocks,
            c.topk,
            c.block_size,
            c.dense_len,
            c.lse_approx,
            c.use_nope,
            chosen.blocks,
            chosen.counts,
        )
        return chosen

    def attend(
        self, q: Array, kv: KVLayer, step: Step, selection: Selection | None, out: Array | None = None
    ) -> Array:
        out = _result(out, (q.shape[0], q.shape[1] * q.shape[2]))
        blocks, counts = (selection.blocks, selection.counts) if selection else (None, None)
        self._ctx.attend(_floats(q), *_pages(kv), *_rows(step), blocks, counts, out)
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

    # Coarse ops: the contract's compositions, over scratch memory that is kept between calls.

    def qkv(self, x: Array, w: AttentionWeights, kv: KVLayer, step: Step, out: Array | None = None) -> Array:
        n, d = step.num_rows, kv.head_dim
        h = self.rms_norm(x, w.norm, w.eps, self._scratch("norm", x.shape))
        projected = self._linears(
            h,
            (w.q, _result(out, (n, w.q.weight.shape[0]))),
            (w.k, self._scratch("k", (n, w.k.weight.shape[0]))),
            (w.v, self._scratch("v", (n, w.v.weight.shape[0]))),
        )
        q, k, v = (x.reshape(n, -1, d) for x in projected)
        if w.q_norm is not None and w.k_norm is not None:
            q = self.rms_norm(q, w.q_norm, w.eps, q)
            k = self.rms_norm(k, w.k_norm, w.eps, k)
        k = self.rotary(k, step.positions, step.cos, step.sin)
        self.append(k, v, kv, step)
        return self.rotary(q, step.positions, step.cos, step.sin)

    def add_linear(self, x: Array, a: Array, linear: Linear, scale: float) -> Array:
        x = _floats(x)
        self._ctx.linear(_floats(a), _weight(linear.weight), linear.bias, x, scale, True)
        return x

    def gate_up(self, x: Array, w: FeedForwardWeights, out: Array | None = None) -> Array:
        h = self.rms_norm(x, w.norm, w.eps, self._scratch("norm", x.shape))
        gate, up = self._linears(
            h,
            (w.gate, _result(out, (x.shape[0], w.gate.weight.shape[0]))),
            (w.up, self._scratch("up", (x.shape[0], w.up.weight.shape[0]))),
        )
        return self.silu_mul(gate, up, gate)

    def _linears(self, x: Array, *products: tuple[Linear, Array]) -> list[Array]:
        """Products of one x with several matrices, which share what the kernels make of x."""
        listed = [(_weight(linear.weight), linear.bias, out) for linear, out in products]
        self._ctx.linears(_floats(x), listed)
        return [out for _, out in products]

    def _scratch(self, name: str, shape: tuple[int, ...]) -> Floats:
        """A float32 array of ``shape``, of this Python thread, valid until the next call for ``name``."""
        size = math.prod(shape)
        buffer = getattr(self._local, name, None)
        if buffer is None or buffer.size < size:
            buffer = np.empty(size, np.float32)
            setattr(self._local, name, buffer)
        return buffer[:size].reshape(shape)


def _floats(x: Array) -> Floats:
    return np.ascontiguousarray(x, np.float32)


def _ints(x: Array) -> Ints:
    return np.ascontiguousarray(x, np.int32)


def _result(out: Array | None, shape: tuple[int, ...]) -> Array:
    return np.empty(shape, np.float32) if out is None else out


def _weight(w: PackedTensor) -> _cpu.Weight:
    """The extension's view of a matrix, checked once."""
    found = w.native.get("cpu")
    if found is None:
        rows, cols = w.shape
        found = _cpu.Weight(
            w.spec.kind, w.layout, rows, cols, w.spec.group_size, w.codes, w.scales, w.offsets
        )
        w.native["cpu"] = found
    return found


def _rows(step: Step) -> tuple[Ints, Ints, Ints]:
    return _ints(step.positions), _ints(step.cu_rows), _ints(step.page_table)


def _pages(kv: KVLayer) -> tuple[Array, Array, Array | None, Array | None]:
    return kv.keys, kv.values, kv.key_scales, kv.value_scales


def _compressed(kv: KVLayer) -> tuple[Array | None, Array | None, Array | None, Array | None]:
    return kv.kernels, kv.kernel_scales, kv.coarse, kv.coarse_scales
