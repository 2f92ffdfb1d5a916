"""The truth: every op in plain NumPy, in the order in which the papers write it.

Norms, softmax and block scores are computed in float64, products with weights in float32 on
unpacked weights. Nothing here is fast; everything here is what the other tables are tested against.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minicpm4.config import SparseConfig
from minicpm4.config.sparse import COARSE
from minicpm4.formats.bf16 import bf16_to_f32, f32_to_bf16
from minicpm4.formats.packing import unpack, unpack_rows
from minicpm4.formats.quant import PackedTensor
from minicpm4.kernels.contract import OpTable
from minicpm4.kernels.layer_weights import Linear
from minicpm4.kernels.paths import paths
from minicpm4.kernels.step import Accepted, Array, Ints, KVLayer, Selection, Step

Doubles = NDArray[np.float64]

TINY = np.float32(1e-30)  # keys and values below this, and norms, are 0 where they become integers
ROWS_BUDGET = 1 << 22  # scores held at once: bounds the memory of a long prefill


class RefOps(OpTable):
    """NumPy op table. Slow by design: use it to check, not to serve."""

    name = "ref"
    description = "ref: NumPy, the slow truth"

    def embed(self, table: PackedTensor, ids: Ints, scale: float, out: Array | None = None) -> Array:
        rows, inverse = np.unique(ids, return_inverse=True)
        values = np.stack([unpack_rows(table, slice(r, r + 1))[0] for r in rows.tolist()])
        return np.asarray(values * np.float32(scale), np.float32)[inverse]

    def rms_norm(self, x: Array, weight: Array, eps: float, out: Array | None = None) -> Array:
        x64 = x.astype(np.float64)
        scale = 1.0 / np.sqrt(np.mean(x64 * x64, axis=-1, keepdims=True) + eps)
        return (x64 * scale * weight).astype(np.float32)

    def linear(self, x: Array, linear: Linear, out: Array | None = None) -> Array:
        # Row by row: BLAS adds in another order where there are more of them.
        weight = unpack(linear.weight).T
        y = np.stack([row @ weight for row in x]) if len(x) else np.empty((0, weight.shape[1]), np.float32)
        return y if linear.bias is None else y + linear.bias

    def rotary(self, x: Array, positions: Ints, cos: Array, sin: Array) -> Array:
        return rotate(x, cos[positions], sin[positions]).astype(np.float32)

    def append(self, k: Array, v: Array, kv: KVLayer, step: Step) -> None:
        for rows, table in _sequences(step):
            positions = step.positions[rows]
            page, slot = table[positions // kv.page_size], positions % kv.page_size
            _store(kv, page, slot, np.asarray(k[rows], np.float32), np.asarray(v[rows], np.float32))
            if step.sparse is not None and step.tree is None:
                _compress_all(kv, table, positions, step)

    def settle(self, kv: KVLayer, step: Step, accepted: Accepted) -> None:
        sources, plain = accepted.moves(step)
        for rows, table in _sequences(plain):
            for source, target in zip(sources[rows], plain.positions[rows], strict=True):
                _move(kv, table, int(source), int(target))
            if step.sparse is not None:
                _compress_all(kv, table, plain.positions[rows], plain)

    def select(self, q: Array, kv: KVLayer, step: Step) -> Selection:
        config = step.sparse
        assert config is not None and kv.compressed is not None
        n, hkv = step.num_rows, kv.num_kv_heads
        blocks = np.full((n, hkv, config.budget), -1, np.int32)
        counts = np.full((n, hkv), -1, np.int32)
        if step.tree is not None:
            for own, pages, plain in paths(self, kv, step):
                one = self.select(q[own], pages, plain)
                blocks[own], counts[own] = one.blocks, one.counts
            return Selection(blocks=blocks, counts=counts)
        if config.use_nope:
            q = unrotate(q, step.cos[step.positions], step.sin[step.positions])
        for rows, table in _sequences(step):
            visible = (step.positions[rows].max() + 1) // kv.page_size + 2
            for part in _slices(rows, q.shape[1] * visible * config.compressed_per_block):
                chosen = _choose(q[part].astype(np.float64), kv, table, step.positions[part], config)
                for i, row in enumerate(range(part.start, part.stop)):
                    if not config.is_dense_at(int(step.positions[row])):
                        for h in range(hkv):
                            ids = np.flatnonzero(chosen[i, h])
                            blocks[row, h, : len(ids)], counts[row, h] = ids, len(ids)
        return Selection(blocks=blocks, counts=counts)

    def attend(
        self, q: Array, kv: KVLayer, step: Step, selection: Selection | None, out: Array | None = None
    ) -> Array:
        n, hq, d = q.shape
        if step.tree is not None:
            found = np.empty((n, hq * d), np.float32)
            for row, pages, plain in paths(self, kv, step):
                found[row] = self.attend(q[row], pages, plain, selection and _rows_of(selection, row))
            return found
        result = np.empty((n, kv.num_kv_heads, hq // kv.num_kv_heads, d), np.float32)
        for rows, table in _sequences(step):
            length = int(step.positions[rows].max()) + 1
            keys, values = gather(kv, table, length)
            for part in _slices(rows, hq * length):
                allowed = _allowed(step.positions[part], selection, part, kv, length)
                if kv.window:
                    first = step.positions[part] - kv.window + 1
                    allowed &= (np.arange(length) >= first[:, None])[:, None]
                grouped = q[part].reshape(-1, *result.shape[1:]).astype(np.float64)
                scores = np.einsum("nhgd,htd->nhgt", grouped, keys) / np.sqrt(d)
                weights = softmax(np.where(allowed[:, :, None], scores, -np.inf))
                result[part] = _weighted_sum(weights, values, allowed)
        return result.reshape(n, hq * d)

    def silu_mul(self, gate: Array, up: Array, out: Array | None = None) -> Array:
        g = gate.astype(np.float64)
        with np.errstate(over="ignore"):
            return (g / (1.0 + np.exp(-g)) * up).astype(np.float32)

    def log_sum_exp(self, logits: Array) -> Array:
        x = logits.astype(np.float64)
        top = np.max(x, axis=-1, keepdims=True)
        top = np.where(np.isfinite(top), top, 0.0)
        with np.errstate(divide="ignore"):
            return (np.log(np.sum(np.exp(x - top), axis=-1)) + top[:, 0]).astype(np.float32)

    def top_k(self, logits: Array, k: int) -> tuple[Array, Array]:
        order = np.argsort(-logits, axis=-1, kind="stable")[:, :k]
        return np.take_along_axis(logits, order, axis=-1), order.astype(np.int32)


def rotate(x: Array, cos: Array, sin: Array) -> Doubles:
    """Rotate the halves of x (n, heads, d) by angles given as cos and sin (n, d / 2)."""
    a, b = np.split(x.astype(np.float64), 2, axis=-1)
    c, s = cos[:, None].astype(np.float64), sin[:, None].astype(np.float64)
    return np.concatenate([a * c - b * s, b * c + a * s], axis=-1)


def unrotate(x: Array, cos: Array, sin: Array) -> Doubles:
    """Undo ``rotate``, its attention factor included: cos^2 + sin^2 is that factor squared."""
    factor = (cos.astype(np.float64) ** 2 + sin.astype(np.float64) ** 2)[:, None]
    return rotate(x, cos, -sin) / np.concatenate([factor, factor], axis=-1)


def softmax(scores: Doubles) -> Doubles:
    """Softmax over the last axis; each row has at least one finite entry."""
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return np.asarray(weights / total(weights, -1))


def total(x: Doubles, axis: int) -> Doubles:
    """Sum over an axis, kept, one number after another: zeros at the end, as of tokens that other rows alone
    see, change no bit. NumPy's own order goes by the length."""
    return np.cumsum(x, axis=axis).take([-1], axis=axis)


def gather(kv: KVLayer, table: Ints, length: int) -> tuple[Doubles, Doubles]:
    """Return keys and values (hkv, length, d) of a sequence's first ``length`` tokens."""
    pages = table[: -(-length // kv.page_size)]
    keys, values = kv.keys[pages], kv.values[pages]
    if kv.key_scales is None or kv.value_scales is None:
        keys, values = _decode(keys).transpose(0, 1, 3, 2), _decode(values)
    else:
        tokens = (*kv.key_scales[pages].shape, kv.head_dim)
        keys = keys.transpose(0, 1, 3, 2, 4).reshape(tokens) * kv.key_scales[pages][..., None]
        values = values.transpose(0, 1, 2, 4, 3).reshape(tokens) * kv.value_scales[pages][..., None]
    shape = (kv.num_kv_heads, -1, kv.head_dim)
    keys, values = (x.swapaxes(0, 1).reshape(shape)[:, :length] for x in (keys, values))
    return keys.astype(np.float64), values.astype(np.float64)


def quantise(x: Array) -> tuple[Array, Array]:
    """Return int8 codes of x (..., d) and float32 scales (...): the largest of each d becomes 127."""
    most = np.abs(x).max(axis=-1)
    known = np.isfinite(most)
    most = np.where(known & (most >= TINY), most, 0).astype(np.float32)
    inverse = np.divide(np.float32(127), most, out=np.zeros_like(most), where=most > 0)
    codes = np.rint(np.where(known[..., None], x, 0) * inverse[..., None]).astype(np.int8)
    return codes, np.where(known, most / np.float32(127), np.float32(np.nan))


def _store(kv: KVLayer, page: Ints, slot: Ints, k: Array, v: Array) -> None:
    """Put k and v (rows, hkv, d) into their slots, rounded to what pages hold."""
    if kv.key_scales is None or kv.value_scales is None:
        kv.keys[page, :, :, slot] = _encode(k, kv.keys.dtype)
        kv.values[page, :, slot, :] = _encode(v, kv.values.dtype)
        return
    codes, kv.key_scales[page, :, slot] = quantise(k)
    kv.keys[page, :, :, slot] = codes.reshape(*codes.shape[:2], -1, 2)
    kv.values[page, :, slot // 2, :, slot % 2], kv.value_scales[page, :, slot] = quantise(v)


def _move(kv: KVLayer, table: Ints, source: int, target: int) -> None:
    """Copy the key and the value of one token of a sequence to another's place, bit by bit."""
    (a, i), (b, j) = ((table[t // kv.page_size], t % kv.page_size) for t in (source, target))
    kv.keys[b, :, :, j] = kv.keys[a, :, :, i]
    if kv.key_scales is None or kv.value_scales is None:
        kv.values[b, :, j] = kv.values[a, :, i]
        return
    kv.values[b, :, j // 2, :, j % 2] = kv.values[a, :, i // 2, :, i % 2]
    for scales in (kv.key_scales, kv.value_scales):
        scales[b, :, j] = scales[a, :, i]


def _encode(x: Array, dtype: np.dtype[Any]) -> Array:
    return f32_to_bf16(x) if dtype == np.uint16 else x


def _decode(x: Array) -> Array:
    return bf16_to_f32(x) if x.dtype == np.uint16 else x


def _weighted_sum(weights: Doubles, values: Doubles, allowed: NDArray[np.bool_]) -> Doubles:
    """Sums (rows, hkv, group, d) of weights (rows, hkv, group, t) times values (hkv, t, d). A token that
    a row may not read does not reach it, not even as 0 * NaN."""
    good: NDArray[np.bool_] = np.all(np.isfinite(values), axis=-1)
    sums: Doubles = np.einsum("nhgt,htd->nhgd", weights, np.where(good[..., None], values, 0))
    for h, t in np.argwhere(~good):
        rows = allowed[:, h, t]
        sums[rows, h] += weights[rows, h, :, t][..., None] * values[h, t]
    return sums


def _sequences(step: Step) -> Iterator[tuple[slice, Ints]]:
    for j, table in enumerate(step.page_table):
        if step.cu_rows[j] < step.cu_rows[j + 1]:
            yield slice(int(step.cu_rows[j]), int(step.cu_rows[j + 1])), table


def _rows_of(selection: Selection, rows: slice) -> Selection:
    return Selection(blocks=selection.blocks[rows], counts=selection.counts[rows])


def _slices(rows: slice, per_row: int) -> Iterator[slice]:
    size = max(1, ROWS_BUDGET // max(per_row, 1))
    for start in range(rows.start, rows.stop, size):
        yield slice(start, min(start + size, rows.stop))


def _home(j: Ints, config: SparseConfig, times: int, page_size: int) -> tuple[Ints, Ints]:
    """Page index within the sequence, and slot, of compressed key j: where its last token is."""
    stride = config.kernel_stride * times
    end = j * stride + config.kernel_size * times - 1
    return end // page_size, end % page_size // stride


def _num_visible(position: Any, config: SparseConfig, times: int = 1) -> Any:
    """How many compressed keys a query at ``position`` sees: those with j * stride + size <= position + 1."""
    stride, size = config.kernel_stride * times, config.kernel_size * times
    return np.maximum((position + 1 - size) // stride + 1, 0)


def _compress_all(kv: KVLayer, table: Ints, positions: Ints, step: Step) -> None:
    """Store the compressed keys, fine and coarse, that end at ``positions`` of one sequence."""
    _compress(kv.compressed, kv.compressed_scales, kv, table, positions, step, 1)
    _compress(kv.coarse, kv.coarse_scales, kv, table, positions, step, COARSE)


def _compress(
    store: Array | None,
    scales: Array | None,
    kv: KVLayer,
    table: Ints,
    positions: Ints,
    step: Step,
    times: int,
) -> None:
    config = step.sparse
    if store is None or config is None:
        return
    stride, size = config.kernel_stride * times, config.kernel_size * times
    first = int(_num_visible(positions[0] - 1, config, times))
    last = int(_num_visible(positions[-1], config, times))
    if first >= last:
        return
    length = (last - 1) * stride + size
    keys, _ = gather(kv, table, length)
    if config.use_nope:
        keys = unrotate(keys.transpose(1, 0, 2), step.cos[:length], step.sin[:length]).transpose(1, 0, 2)
    for j in range(first, last):
        page, slot = _home(np.asarray(j, np.int32), config, times, kv.page_size)
        mean = keys[:, j * stride : j * stride + size].mean(axis=1)
        if scales is None:
            store[table[page], :, slot] = mean
        else:
            store[table[page], :, slot], scales[table[page], :, slot] = _codes(mean)


def _codes(x: Doubles) -> tuple[Array, Array]:
    """Return int16 codes of norm 32766 of x (..., d), and float32 scales (...)."""
    norm = np.linalg.norm(x, axis=-1)
    known = np.isfinite(norm)
    norm = np.where(known & (norm >= TINY), norm, 0)
    inverse = np.divide(32766, norm, out=np.zeros_like(norm), where=norm > 0)
    codes = np.rint(np.where(known[..., None], x, 0) * inverse[..., None]).astype(np.int16)
    return codes, np.where(known, norm / 32766, np.nan).astype(np.float32)


def _compressed(count: int, kv: KVLayer, table: Ints, config: SparseConfig, times: int) -> Doubles:
    """The first ``count`` compressed keys (hkv, count, d), coarse ones with ``times`` = COARSE."""
    store, scales = (kv.compressed, kv.compressed_scales) if times == 1 else (kv.coarse, kv.coarse_scales)
    assert store is not None
    page, slot = _home(np.arange(count, dtype=np.int32), config, times, kv.page_size)
    found = store[table[page], :, slot].astype(np.float64)
    if scales is not None:
        found *= scales[table[page], :, slot, None]
    return np.asarray(found.transpose(1, 0, 2))


def _choose(q: Array, kv: KVLayer, table: Ints, positions: Ints, config: SparseConfig) -> NDArray[np.bool_]:
    """Chosen blocks (rows, hkv, blocks) of rows at ``positions`` of one sequence."""
    grouped = q.reshape(len(positions), kv.num_kv_heads, -1, kv.head_dim)
    scores = _block_scores(grouped, kv, table, positions, config)
    b = np.arange(scores.shape[-1])
    own = positions[:, None] // config.block_size
    visible = b <= own
    fixed = visible & ((b < config.init_blocks) | (b > own - config.local_blocks))
    chosen = np.repeat(fixed[:, None], kv.num_kv_heads, axis=1)
    open_blocks = np.broadcast_to((visible & ~fixed)[:, None], chosen.shape)
    # The last key sorts first: candidates, then higher scores, then lower indices.
    rank = np.lexsort((np.broadcast_to(b, scores.shape), -scores, ~open_blocks))
    picked = np.zeros_like(chosen)
    np.put_along_axis(picked, rank[..., : config.topk - config.init_blocks], True, axis=-1)
    return chosen | (picked & open_blocks)


def _block_scores(q: Doubles, kv: KVLayer, table: Ints, positions: Ints, config: SparseConfig) -> Doubles:
    """Steps 2 and 3: (rows, hkv, blocks), -inf where a block overlaps no visible kernel."""
    visible = _num_visible(positions, config)
    count, blocks = int(visible.max()), int(positions.max()) // config.block_size + 1
    n, hkv = q.shape[:2]
    ratio, overlap = config.compressed_per_block, config.kernel_size // config.kernel_stride
    padded = np.full((n, hkv, blocks * ratio + overlap - 1), -np.inf)
    if count:
        fine = _scores(q, _compressed(count, kv, table, config, 1), visible)
        lse = _lse(fine)
        if config.lse_approx and kv.coarse is not None:
            lse = _coarse_lse(q, kv, table, positions, config, lse)
        shared = total(np.exp(fine - lse), 2)[:, :, 0]
        shared[np.broadcast_to(np.arange(count) >= visible[:, None, None], shared.shape)] = -np.inf
        padded[..., overlap - 1 : overlap - 1 + count] = shared
    windows = [padded[..., t : t + (blocks - 1) * ratio + 1 : ratio] for t in range(ratio + overlap - 1)]
    return np.asarray(np.max(windows, axis=0))


def _scores(q: Doubles, compressed: Doubles, visible: Ints) -> Doubles:
    """q . compressed key / sqrt(d): (rows, hkv, group, keys), -inf where not visible."""
    scores = np.einsum("nhgd,hjd->nhgj", q, compressed) / np.sqrt(q.shape[-1])
    hidden = np.arange(compressed.shape[1]) >= visible[:, None]
    return np.where(hidden[:, None, None], -np.inf, scores)


def _lse(scores: Doubles) -> Doubles:
    """Log-sum-exp over compressed keys, keeping the axis; 0 where nothing is visible."""
    top = scores.max(axis=-1, keepdims=True, initial=-np.inf)
    top = np.where(np.isfinite(top), top, 0.0)
    weights = total(np.exp(scores - top), -1)
    return np.asarray(np.log(np.where(weights > 0, weights, 1.0)) + top)


def _coarse_lse(
    q: Doubles, kv: KVLayer, table: Ints, positions: Ints, config: SparseConfig, fine: Doubles
) -> Doubles:
    """The LSE approximation: over coarse compressed keys, where a row sees any; else ``fine``."""
    visible = _num_visible(positions, config, COARSE)
    if not visible.max():
        return fine
    coarse = _compressed(int(visible.max()), kv, table, config, COARSE)
    approx = _lse(_scores(q, coarse, visible))
    return np.where((visible > 0)[:, None, None, None], approx, fine)


def _allowed(
    positions: Ints, selection: Selection | None, rows: slice, kv: KVLayer, length: int
) -> NDArray[np.bool_]:
    """Which tokens each row may read: (rows, hkv, length)."""
    tokens = np.arange(length)
    causal = np.repeat((tokens <= positions[:, None])[:, None], kv.num_kv_heads, axis=1)
    if selection is None:
        return causal
    for i, row in enumerate(range(rows.start, rows.stop)):
        for h in range(kv.num_kv_heads):
            count = int(selection.counts[row, h])
            if count >= 0:
                chosen = selection.blocks[row, h, :count]
                causal[i, h] &= np.isin(tokens // kv.page_size, chosen)
    return causal
