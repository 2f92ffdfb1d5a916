"""Block-sparse attention (InfLLM v2) on plain arrays, for users who have no model at hand."""

from __future__ import annotations

import operator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minicpm4.config import SparseConfig
from minicpm4.config.choices import KV_FORMATS
from minicpm4.errors import RequestError
from minicpm4.kernels.contract import OpTable
from minicpm4.kernels.pages import page_arrays
from minicpm4.kernels.registry import resolve
from minicpm4.kernels.step import Array, Floats, KVLayer, Selection, Step

MAX_HEAD_DIM = 512  # as of models
MAX_TOKENS = 1 << 30


def attend_sparse(
    q: Array,
    k: Array,
    v: Array,
    config: SparseConfig,
    *,
    start: int = 0,
    backend: str = "auto",
    kv: str = "float32",
) -> tuple[Floats, NDArray[np.bool_]]:
    """Attend with the blocks that InfLLM v2 chooses; return the output and the chosen blocks.

    q (nq, hq, d) holds the queries of the last nq tokens of a sequence, k and v (n, hkv, d) the keys
    and values of all its n tokens, as floats; the first query is at position ``start`` = n - nq.
    Query and key are taken as they come: rotate them before, if they are to be rotated at all
    (``config.use_nope`` therefore changes nothing here). ``backend``: "auto", "cpu", "ref" or "gpu".
    ``kv``: what keys and values are rounded to first, "float32", "bf16"
    or "int8".

    Returns out (nq, hq, d) float32 and blocks (nq, hkv, ceil(n / block_size)) boolean; a row below
    ``config.dense_len`` has every block up to its own. Raises RequestError when arrays do not fit
    together, UnsupportedError when the backend is not there or has no such pages.
    """
    if not isinstance(config, SparseConfig):
        raise RequestError(f"config is a {type(config).__name__}", "pass a SparseConfig")
    start = _check(q, k, v, start, kv)
    ops = resolve(backend)
    ops.check_supports(kv=kv)
    n, hkv, d = k.shape
    config = config.within(-(-n // config.block_size))
    layer = _pages(ops, n, hkv, d, config, kv)
    whole = _step(n, 0, d, config)
    ops.append(ops.put(_floats(k)), ops.put(_floats(v)), layer, whole)
    queries = _step(n, start, d, config)
    return _attend(ops, _floats(q), layer, queries)


def _attend(ops: OpTable, q: Floats, layer: KVLayer, step: Step) -> tuple[Floats, NDArray[np.bool_]]:
    there = ops.put(q)
    chosen = ops.select(there, layer, step)
    out = np.asarray(ops.get(ops.attend(there, layer, step, chosen)), np.float32)
    selection = Selection(blocks=ops.get(chosen.blocks), counts=ops.get(chosen.counts))
    return out.reshape(q.shape), _as_mask(selection, step, layer)


def _as_mask(selection: Selection, step: Step, layer: KVLayer) -> NDArray[np.bool_]:
    blocks, counts = selection.blocks, selection.counts
    num_blocks = step.page_table.shape[1]
    own = step.positions // layer.page_size
    mask = (np.arange(num_blocks) <= own[:, None])[:, None] & (counts < 0)[..., None]
    used = np.arange(blocks.shape[-1]) < counts[..., None]
    row, head, slot = np.nonzero(used)
    mask[row, head, blocks[row, head, slot]] = True
    return mask


def _pages(ops: OpTable, n: int, hkv: int, d: int, config: SparseConfig, kv: str) -> KVLayer:
    pages = -(-n // config.block_size)
    layout = page_arrays(kv, heads=hkv, d=d, page_size=config.block_size, sparse=config)
    try:
        arrays: dict[str, Any] = {
            n: ops.zeros((pages, *shape), dtype) for n, (shape, dtype) in layout.items()
        }
    except (MemoryError, ValueError) as error:  # NumPy's for more than there can be
        raise RequestError(
            f"{pages} pages of block_size = {config.block_size} do not fit in memory", "use smaller blocks"
        ) from error
    return KVLayer(**arrays)


def _step(n: int, start: int, d: int, config: SparseConfig) -> Step:
    """Rows start to n - 1 of one sequence whose pages are in order and whose keys are not rotated."""
    return Step(
        ids=np.zeros(n - start, np.int32),
        positions=np.arange(start, n, dtype=np.int32),
        cu_rows=np.array([0, n - start], np.int32),
        page_table=np.arange(-(-n // config.block_size), dtype=np.int32)[None],
        cos=np.ones((n, d // 2), np.float32),
        sin=np.zeros((n, d // 2), np.float32),
        sparse=config,
    )


def _floats(x: Array) -> Floats:
    return np.ascontiguousarray(x, np.float32)


def _check(q: Array, k: Array, v: Array, start: int, kv: str) -> int:
    """``start`` as an int."""
    for name, x in (("q", q), ("k", k), ("v", v)):
        _check_array(name, x)
    if kv not in KV_FORMATS:
        raise RequestError(f"kv = {kv!r} is not a cache type", f"choose one of {', '.join(KV_FORMATS)}")
    if k.shape != v.shape:
        raise RequestError(f"k has shape {k.shape} and v {v.shape}", "both need shape (n, hkv, d)")
    (nq, hq, d), (n, hkv, dk) = q.shape, k.shape
    if d != dk or d % 2 or d > MAX_HEAD_DIM:
        raise RequestError(
            f"q has head size {d} and k {dk}", f"both need the same even head size, at most {MAX_HEAD_DIM}"
        )
    if hq % hkv:
        raise RequestError(f"{hq} query heads are not a multiple of {hkv} key/value heads")
    try:
        start = operator.index(start)
    except TypeError:
        raise RequestError(f"start = {start!r:.80} is no whole number", f"pass start = {n - nq}") from None
    if start < 0 or start + nq != n:
        raise RequestError(
            f"start = {start} with {nq} queries and {n} keys: the queries must be the last tokens",
            f"pass start = {n - nq}" if nq <= n else "pass the keys and values of every query too",
        )
    return start


def _check_array(name: str, x: Any) -> None:
    if not isinstance(x, np.ndarray) or x.ndim != 3 or not np.issubdtype(x.dtype, np.floating):
        found = f"{x.dtype} array of shape {x.shape}" if isinstance(x, np.ndarray) else type(x).__name__
        raise RequestError(f"{name} is a {found}", "it must be a NumPy array of floats (tokens, heads, d)")
    if 0 in x.shape or x.shape[0] >= MAX_TOKENS:
        remedy = f"every length must be at least 1, and there must be fewer than {MAX_TOKENS:,} tokens"
        raise RequestError(f"{name} has shape {x.shape}", remedy)
