"""Keys and values into their pages, and the compressed keys that end in them.

A compressed key is the mean of ``kernel_size`` keys and belongs to the page in which it ends, so that a page
depends on itself and those before it alone. Its codes are 16-bit integers of norm 32766 times a scale; with
pages of float32 it is float32.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from minicpm4.config import SparseConfig
from minicpm4.config.sparse import COARSE
from minicpm4.kernels.step import Tree

__all__ = ["append", "compress", "compress_paths", "rotate_and_append"]

MOST = tl.constexpr(Tree.MOST)


@triton.jit
def _place(n, positions, sequences, table, max_pages, PAGE: tl.constexpr):
    position = tl.load(positions + n)
    sequence = tl.load(sequences + n).to(tl.int64)
    page = tl.load(table + sequence * max_pages + position // PAGE).to(tl.int64)
    return position, page, position % PAGE


@triton.jit
def _norm_and_turn(
    at, weight, eps, position, cos, sin, i, seen, HALF: tl.constexpr, NORM: tl.constexpr, TURN: tl.constexpr
):  # fmt: skip
    """Both halves of a head, normed and rotated, float32."""
    a = tl.load(at + i, mask=seen, other=0.0).to(tl.float32)
    b = tl.load(at + HALF + i, mask=seen, other=0.0).to(tl.float32)
    if NORM:
        root = 1.0 / tl.sqrt((tl.sum(a * a, axis=0) + tl.sum(b * b, axis=0)) / (2 * HALF) + eps)
        a *= root * tl.load(weight + i, mask=seen, other=0.0)
        b *= root * tl.load(weight + HALF + i, mask=seen, other=0.0)
    if TURN:
        angle = position.to(tl.int64) * HALF + i
        c, s = tl.load(cos + angle, mask=seen, other=0.0), tl.load(sin + angle, mask=seen, other=0.0)
        a, b = a * c - b * s, b * c + a * s
    return a, b


@triton.jit
def _append(
    q, k, v, q_out, q_norm, k_norm, eps, q_stride, k_stride, v_stride,
    positions, angles, sequences, table, max_pages, cos, sin, keys, values, hq, hkv,
    HALF: tl.constexpr, PAGE: tl.constexpr, NORM: tl.constexpr, TURN: tl.constexpr, B: tl.constexpr,
):  # fmt: skip
    """A row's head: the first hq are queries (rotated), then hkv keys (rotated, stored), then values."""
    n, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    _, page, slot = _place(n, positions, sequences, table, max_pages, PAGE)
    position = tl.load(angles + n)
    i = tl.arange(0, B)
    seen = i < HALF
    d: tl.constexpr = 2 * HALF
    if head < hq:
        a, b = _norm_and_turn(
            q + n * q_stride + head * d, q_norm, eps, position, cos, sin, i, seen, HALF, NORM, TURN
        )
        to = q_out + (n * hq + head) * d + i
        tl.store(to, a.to(q_out.dtype.element_ty), mask=seen)
        tl.store(to + HALF, b.to(q_out.dtype.element_ty), mask=seen)
    elif head < hq + hkv:
        own = head - hq
        a, b = _norm_and_turn(
            k + n * k_stride + own * d, k_norm, eps, position, cos, sin, i, seen, HALF, NORM, TURN
        )
        to = keys + ((page * hkv + own) * d + i) * PAGE + slot
        tl.store(to, a.to(keys.dtype.element_ty), mask=seen)
        tl.store(to + HALF * PAGE, b.to(keys.dtype.element_ty), mask=seen)
    else:
        own = head - hq - hkv
        at = v + n * v_stride + own * d + i
        to = values + ((page * hkv + own) * PAGE + slot) * d + i
        for half in tl.static_range(2):
            value = tl.load(at + half * HALF, mask=seen, other=0.0)
            tl.store(to + half * HALF, value.to(values.dtype.element_ty), mask=seen)


@triton.jit
def _compress(
    keys, store, scales, positions, sequences, table, max_pages, cos, sin, hkv, places, bases, nodes,
    HALF: tl.constexpr, PAGE: tl.constexpr, SIZE: tl.constexpr, STRIDE: tl.constexpr, SLOTS: tl.constexpr,
    NOPE: tl.constexpr, CODES: tl.constexpr, B: tl.constexpr, T: tl.constexpr,
):  # fmt: skip
    """The compressed key that ends in a row's token, if one does. Of a tree (where there are ``nodes``) that
    of the row's path: it is stored as number n * hkv + head."""
    n, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    position, page, slot = _place(n, positions, sequences, table, max_pages, PAGE)
    place = (page * hkv + head) * SLOTS + slot // STRIDE
    if nodes is not None:
        position, base = tl.load(places + n), tl.load(bases + n)
        place = n * hkv + head
    begin = position + 1 - SIZE
    if (begin >= 0) & (begin % STRIDE == 0):
        sequence = tl.load(sequences + n).to(tl.int64)
        i = tl.arange(0, B)
        seen = i < HALF
        low, high = tl.zeros([B], tl.float32), tl.zeros([B], tl.float32)
        for start in range(0, SIZE, T):
            t = start + tl.arange(0, T)
            token = begin + t
            covered = t < SIZE
            lies = token
            if nodes is not None:
                draft = covered & (token >= base)
                node = tl.load(nodes + n * MOST + token - base, mask=draft, other=0)
                lies = tl.where(draft, tl.load(positions + node, mask=draft, other=0), token)
            own = tl.load(table + sequence * max_pages + lies // PAGE, mask=covered, other=0).to(tl.int64)
            at = keys + ((own * hkv + head) * (2 * HALF) * PAGE + lies % PAGE)[:, None] + (i * PAGE)[None, :]
            both = covered[:, None] & seen[None, :]
            a = tl.load(at, mask=both, other=0.0).to(tl.float32)
            b = tl.load(at + HALF * PAGE, mask=both, other=0.0).to(tl.float32)
            if NOPE:  # rotated back; cos^2 + sin^2 is the attention factor squared
                angle = token.to(tl.int64)[:, None] * HALF + i[None, :]
                c, s = tl.load(cos + angle, mask=both, other=1.0), tl.load(sin + angle, mask=both, other=0.0)
                factor = c * c + s * s
                a, b = (a * c + b * s) / factor, (b * c - a * s) / factor
            low += tl.sum(a, axis=0)
            high += tl.sum(b, axis=0)
        low, high = low / SIZE, high / SIZE
        to = store + place * (2 * HALF) + i
        if CODES:
            norm = tl.sqrt(tl.sum(low * low, axis=0) + tl.sum(high * high, axis=0))
            finite = norm < float("inf")
            large = finite & (norm >= 1e-30)
            inverse = tl.where(large, 32766.0 / tl.where(large, norm, 1.0), 0.0)
            # Of norms that are no number all codes are 0, and the scale tells.
            low, high = tl.where(finite, low, 0.0) * inverse, tl.where(finite, high, 0.0) * inverse
            low, high = tl.floor(low + 0.5), tl.floor(high + 0.5)
            scale = tl.where(finite, tl.where(large, norm, 0.0) / 32766.0, float("nan"))
            tl.store(scales + place, scale)
        tl.store(to, low.to(store.dtype.element_ty), mask=seen)
        tl.store(to + HALF, high.to(store.dtype.element_ty), mask=seen)


def append(k: Tensor, v: Tensor, kv: Any, rows: Any, cos: Tensor, sin: Tensor, sparse: Any) -> None:
    """Store rotated k and v (n, hkv, d), and what is compressed of them. ``rows``: see tiles.DeviceRows."""
    _store(None, k, v, None, None, kv, rows, cos, sin, turn=False, eps=0.0)
    compress(kv, rows, cos, sin, sparse)


def rotate_and_append(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    q_out: Tensor,
    norms: tuple[Tensor, Tensor] | None,
    eps: float,
    kv: Any,
    rows: Any,
    cos: Tensor,
    sin: Tensor,
    sparse: Any,
) -> None:
    """Norm (where there are ``norms`` of queries and keys) and rotate q (n, hq, d) into ``q_out`` and k,
    store k and v: strided views of a wider array will do."""
    _store(q, k, v, q_out, norms, kv, rows, cos, sin, turn=True, eps=eps)
    compress(kv, rows, cos, sin, sparse)


def _store(
    q: Tensor | None,
    k: Tensor,
    v: Tensor,
    q_out: Tensor | None,
    norms: tuple[Tensor, Tensor] | None,
    kv: Any,
    rows: Any,
    cos: Tensor,
    sin: Tensor,
    *,
    turn: bool,
    eps: float,
) -> None:
    n, hkv, d = k.shape
    if not n:
        return
    hq = 0 if q is None else q.shape[1]
    q, q_out = (k, k) if q is None else (q, q_out)  # kernels want a pointer
    _append[(n, hq + 2 * hkv)](
        q, k, v, q_out, *(norms or (None, None)), eps, q.stride(0), k.stride(0),
        v.stride(0), rows.positions, rows.angles, rows.sequences, rows.page_table,
        rows.page_table.shape[1], cos, sin, kv.keys, kv.values, hq, hkv,
        HALF=d // 2, PAGE=kv.page_size, NORM=norms is not None, TURN=turn,
        B=triton.next_power_of_2(d // 2), num_warps=1,
    )  # fmt: skip


def compress(kv: Any, rows: Any, cos: Tensor, sin: Tensor, sparse: SparseConfig | None) -> None:
    """Store the compressed keys that end in ``rows``, if these are no tree."""
    if sparse is not None and rows.ancestors is None:
        for coarse in (False, True):
            if (kv.coarse if coarse else kv.compressed) is not None:
                stored = (kv.coarse, kv.coarse_scales) if coarse else (kv.compressed, kv.compressed_scales)
                _compress_rows(kv, rows, cos, sin, sparse, coarse, *stored)


def compress_paths(
    kv: Any, rows: Any, cos: Tensor, sin: Tensor, sparse: SparseConfig, *, coarse: bool
) -> tuple[Tensor, Tensor | None]:
    """The compressed keys of a tree's paths that end in ``rows``, (n, hkv, d), where one does, and their
    scales (n, hkv) where pages have such."""
    n, device = rows.positions.shape[0], rows.device
    store = torch.empty((n, kv.num_kv_heads, kv.head_dim), dtype=kv.compressed.dtype, device=device)
    scales = None
    if kv.compressed_scales is not None:
        scales = torch.empty((n, kv.num_kv_heads), dtype=torch.float32, device=device)
    _compress_rows(kv, rows, cos, sin, sparse, coarse, store, scales)
    return store, scales


def _compress_rows(
    kv: Any,
    rows: Any,
    cos: Tensor,
    sin: Tensor,
    sparse: SparseConfig,
    coarse: bool,
    store: Tensor,
    scales: Tensor | None,
) -> None:
    n, half, times = rows.positions.shape[0], kv.head_dim // 2, COARSE if coarse else 1
    if not n:
        return
    _compress[(n, kv.num_kv_heads)](
        kv.keys, store, scales, rows.positions, rows.sequences, rows.page_table,
        rows.page_table.shape[1], cos, sin, kv.num_kv_heads, rows.angles, rows.bases, rows.nodes,
        HALF=half, PAGE=kv.page_size, SIZE=sparse.kernel_size * times,
        STRIDE=sparse.kernel_stride * times, SLOTS=store.shape[2], NOPE=sparse.use_nope,
        CODES=scales is not None, B=triton.next_power_of_2(half), T=32, num_warps=2,
    )  # fmt: skip
