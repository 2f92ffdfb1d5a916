"""Every op of a layer on arrays that nobody reads: how a table that counts memory learns what it takes."""

from __future__ import annotations

import mmap
from collections.abc import Iterable
from dataclasses import replace
from math import prod
from typing import Any

import numpy as np

from minicpm4.config import ModelConfig, SparseConfig
from minicpm4.formats.quant import PackedTensor, QuantSpec, packed_shapes
from minicpm4.kernels.contract import OpTable
from minicpm4.kernels.layer_weights import AttentionWeights, FeedForwardWeights, Linear
from minicpm4.kernels.pages import page_arrays
from minicpm4.kernels.step import Array, KVLayer, Step, Tree

# A group size for each kind: the smallest, of which most is kept beside x.
GROUPS = {"f32": 0, "f16": 0, "bf16": 0, "int8": 32, "int4": 32, "ternary": 32}
GROUPS |= {"int6": 16, "int5": 32, "int3": 16, "int2": 16}
SHIFTED = ("int4", "int5", "int2")  # kinds that files have offsets of
PAGE_SIZE = 64  # without sparse attention
_CHAIN = np.add.accumulate(np.uint64(1) << np.arange(Tree.MOST, dtype=np.uint64))  # of a tree that sees most


def call_every_op(
    ops: OpTable,
    config: ModelConfig,
    sparse: SparseConfig | None,
    *,
    kv: str,
    rows: int,
    context: int,
    kinds: Iterable[str],
) -> None:
    """Steps of ``rows`` rows and of one row, the last of ``context`` tokens, through a layer of ``config``
    with weights of each of ``kinds``, and attention of a tree of drafts. Arrays are not filled: results mean
    nothing, and where the table only counts no memory is taken."""
    hq, hkv, d = config.num_attention_heads, config.num_key_value_heads, config.head_dim
    layer = _page(hkv, d, kv, sparse)
    for n in {min(rows, context), 1}:
        step = _step(n, context, d, layer.page_size, sparse)
        x = untouched((n, config.hidden_size), np.float32)
        a = untouched((n, hq * d), np.float32)
        inner = untouched((n, config.intermediate_size), np.float32)
        ops.attention(a.reshape(n, hq, d), layer, step, untouched(a.shape, np.float32))
        for kind in kinds:
            if any(not _spec(kind).fits(part.shape[1]) for part in (x, a, inner)):
                continue  # the loader keeps such matrices in another kind
            norm = untouched((config.hidden_size,), np.float32)
            q, k = (_linear(kind, heads * d, config.hidden_size, ops) for heads in (hq, hkv))
            ops.qkv(x, AttentionWeights(norm=norm, q=q, k=k, v=k, o=q, eps=1e-6), layer, step, a)
            up = _linear(kind, config.intermediate_size, config.hidden_size, ops)
            ops.gate_up(x, FeedForwardWeights(norm=norm, gate=up, up=up, down=up, eps=1e-6), inner)
            for wide in (a, inner):
                ops.add_linear(x, wide, _linear(kind, config.hidden_size, wide.shape[1], ops), 1.0)
    n = min(rows, context, Tree.MOST)
    step = _step(n, context, d, layer.page_size, sparse)
    tree = Tree(ancestors=_CHAIN[:n], positions=step.positions)
    a = untouched((n, hq * d), np.float32)
    ops.attention(a.reshape(n, hq, d), layer, replace(step, tree=tree), untouched(a.shape, np.float32))


def untouched(shape: tuple[int, ...], dtype: Any) -> Array:
    """An array that takes no memory until something is written to it, and leaves none behind: of what NumPy
    frees the allocator may keep huge pages, each taken whole by its first few bytes."""
    memory = mmap.mmap(-1, max(prod(shape) * np.dtype(dtype).itemsize, 1))
    return np.frombuffer(memory, dtype, prod(shape)).reshape(shape)


def _spec(kind: str) -> QuantSpec:
    return QuantSpec(kind=kind, group_size=GROUPS[kind])


def _linear(kind: str, features: int, columns: int, ops: OpTable) -> Linear:
    spec, shape = _spec(kind), (features, columns)
    shapes = packed_shapes(shape, spec, "rows")
    scales = untouched(shapes["scales"], np.float16) if spec.group_size else None
    offsets = scales if kind in SHIFTED else None
    codes = untouched(shapes["codes"], spec.row.codes)
    tensor = PackedTensor(spec=spec, shape=shape, codes=codes, scales=scales, offsets=offsets)
    return Linear(weight=ops.prepare(tensor))


def _page(hkv: int, d: int, kv: str, sparse: SparseConfig | None) -> KVLayer:
    """One page, which is every page of the step's sequence."""
    size = sparse.block_size if sparse else PAGE_SIZE
    layout = page_arrays(kv, heads=hkv, d=d, page_size=size, sparse=sparse)
    arrays: dict[str, Any] = {name: untouched((1, *shape), dtype) for name, (shape, dtype) in layout.items()}
    return KVLayer(**arrays)


def _step(n: int, context: int, d: int, page_size: int, sparse: SparseConfig | None) -> Step:
    table = untouched((context, d // 2), np.float32)
    return Step(
        ids=np.zeros(n, np.int32),
        positions=np.arange(context - n, context, dtype=np.int32),
        cu_rows=np.array([0, n], np.int32),
        page_table=np.zeros((1, -(-context // page_size)), np.int32),
        cos=table,
        sin=table,
        sparse=sparse,
    )
