"""The contract's ops with gradients, on torch tensors: with them the one forward trains.

What differs from a table of the engine:

- arrays are tensors of any float type: float32, float64 (to check gradients), or bf16 for the products alone
  under ``torch.autocast``, where the residual stream, norms, rotary positions and softmax stay in float32;
- a matrix is a TorchMatrix: a parameter, and how the forward sees it (rounded, in FP8, with a low-rank
  addition);
- a step is a batch of whole documents, one after another: no pages, and nothing of earlier steps. A row's
  place in its document, which is its position unless the batch says otherwise, decides what it reads;
- keys and values live from ``append`` to ``attend`` (TorchKV), so that nothing but the graph keeps them.

The choice of blocks has no gradient; attention over the chosen ones has (kernels/sparse_grad.py).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from minicpm4.config import SparseConfig
from minicpm4.formats.kinds import float_kinds
from minicpm4.formats.quant import QuantSpec
from minicpm4.kernels.contract import OpTable
from minicpm4.kernels.fp8 import fp8_linear
from minicpm4.kernels.layer_weights import Linear
from minicpm4.kernels.sparse_grad import select_blocks, sparse_attention
from minicpm4.kernels.step import Selection
from minicpm4.kernels.straight_through import fake_quantise

__all__ = ["LowRank", "TorchCache", "TorchKV", "TorchMatrix", "TorchOps", "rotate", "wide_type"]

logger = logging.getLogger("minicpm4")

WINDOWED_ROWS = 256  # that read their windows together, at least
_KINDS: dict[torch.dtype, str] = {getattr(torch, row.dtype): name for name, row in float_kinds().items()}


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class LowRank:
    """What is added to a matrix (out, in): ``scale * b @ a``; a (rank, in), b (out, rank) (LoRA, arXiv
    2106.09685)."""

    a: Tensor
    b: Tensor
    scale: float = 1.0


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class TorchMatrix:
    """A weight matrix (out, in) that is trained; it stands where the engine has a PackedTensor.

    ``fake``: the format that the forward sees it rounded to; ``fp8``: whether products with it are in FP8;
    ``low_rank``: what is added to it, after rounding.
    """

    tensor: Tensor
    fake: QuantSpec | None = None
    fp8: bool = False
    low_rank: LowRank | None = None

    @property
    def shape(self) -> tuple[int, int]:
        return self.tensor.shape[0], self.tensor.shape[1]

    @property
    def nbytes(self) -> int:
        return self.tensor.numel() * self.tensor.element_size()

    @property
    def spec(self) -> QuantSpec:
        """The format of the weights that the forward sees."""
        return self.fake or QuantSpec(kind=_KINDS.get(self.tensor.dtype, "f32"))

    def rounded(self) -> Tensor:
        """The matrix without the low-rank addition, rounded to ``fake``."""
        return self.tensor if self.fake is None else fake_quantise(self.tensor, self.fake)

    def values(self) -> Tensor:
        """The whole matrix that the forward sees (out, in)."""
        w, more = self.rounded(), self.low_rank
        return w if more is None else w + more.scale * (more.b @ more.a)


class TorchKV:
    """Keys and values (n, hkv, d) of one layer and one step, from ``append`` to ``attend``.

    ``selection`` is kept, so that a layer that is run again for its gradient (activation checkpointing)
    neither chooses again nor differently. ``window`` as in KVLayer.
    """

    def __init__(self, num_kv_heads: int, head_dim: int, window: int = 0) -> None:
        self.num_kv_heads, self.head_dim, self.window = num_kv_heads, head_dim, window
        self.selection: Selection | None = None
        self._kv: tuple[Tensor, Tensor] | None = None

    def put(self, k: Tensor, v: Tensor) -> None:
        """Keep this step's keys and values."""
        self._kv = k, v

    @property
    def keys(self) -> Tensor:
        assert self._kv is not None, "append comes before select"
        return self._kv[0]

    def take(self) -> tuple[Tensor, Tensor]:
        """Return keys and values and forget them: they hold the graph of everything before."""
        assert self._kv is not None, "append comes before attend"
        kv, self._kv = self._kv, None
        return kv


class TorchCache:
    """A trainer's cache: a fresh TorchKV for each layer of a step. ``windows``: of each layer; none: none has
    one."""

    def __init__(self, num_kv_heads: int, head_dim: int, windows: Sequence[int] = ()) -> None:
        self._shape, self._windows = (num_kv_heads, head_dim), windows

    def layer(self, index: int) -> Any:
        """A TorchKV, in the place of a KVLayer."""
        return TorchKV(*self._shape, self._windows[index] if self._windows else 0)


class TorchOps(OpTable):
    """Ops with gradients. ``step.sparse`` None: every document is read densely, by torch's fused
    attention."""

    name = "torch"
    description = "torch: ops with gradients, for training"
    on_host = False
    kv_formats = ("float32", "bf16")
    reads_trees = False

    # Arguments that the contract calls arrays are tensors here, KVLayer is TorchKV, PackedTensor TorchMatrix.

    def embed(self, table: Any, ids: Any, scale: float, out: Any = None) -> Any:
        x = functional.embedding(ids, table.values())
        return x if scale == 1.0 else x * scale

    def rms_norm(self, x: Any, weight: Any, eps: float, out: Any = None) -> Any:
        wide = x.to(wide_type(x))
        return functional.rms_norm(wide, weight.shape, weight.to(wide.dtype), eps).to(x.dtype)

    def linear(self, x: Any, linear: Linear, out: Any = None) -> Any:
        matrix: Any = linear.weight
        bias: Any = linear.bias
        y = (fp8_linear if matrix.fp8 else functional.linear)(x, matrix.rounded(), bias)
        more = matrix.low_rank
        if more is None:
            return y
        return y + more.scale * functional.linear(functional.linear(x, more.a), more.b)

    def rotary(self, x: Any, positions: Any, cos: Any, sin: Any) -> Any:
        return rotate(x, cos[positions], sin[positions])

    def append(self, k: Any, v: Any, kv: Any, step: Any) -> None:
        kv.put(k, v)

    def settle(self, kv: Any, step: Any, accepted: Any) -> None:
        self.check_supports(tree=True)

    @torch.no_grad()
    def select(self, q: Any, kv: Any, step: Any) -> Selection:
        if kv.selection is None:
            kv.selection = _select(q, kv.keys, step)
        return kv.selection

    def attend(self, q: Any, kv: Any, step: Any, selection: Any, out: Any = None) -> Any:
        q, k, v = _for_products(q, *kv.take())
        with torch.autocast(q.device.type, enabled=False):
            if selection is None:
                parts = [_dense(q[rows], k[rows], v[rows], kv.window) for rows in _documents(step)]
            else:
                parts = _sparse(q, k, v, step, selection.blocks)
        return torch.cat(parts).flatten(1)

    def join(self, parts: Any) -> Any:
        return torch.cat(list(parts), dim=-1)

    def silu_mul(self, gate: Any, up: Any, out: Any = None) -> Any:
        return functional.silu(gate) * up

    def log_sum_exp(self, logits: Any) -> Any:
        return torch.logsumexp(logits.to(wide_type(logits)), dim=-1)

    def top_k(self, logits: Any, k: int) -> tuple[Any, Any]:
        values, order = torch.sort(logits, dim=-1, descending=True, stable=True)
        return values[:, :k], order[:, :k].to(torch.int32)


def wide_type(x: Tensor) -> torch.dtype:
    """The type for norms, softmax and sums of ``x``: float32 at least."""
    return torch.promote_types(x.dtype, torch.float32)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the halves of x (n, heads, d) by angles given as cos and sin (n, d / 2), in float32 at least."""
    wide = x.to(wide_type(x))
    a, b = wide.chunk(2, dim=-1)
    c, s = cos[:, None].to(wide.dtype), sin[:, None].to(wide.dtype)
    return torch.cat([a * c - b * s, b * c + a * s], dim=-1).to(x.dtype)


def _unrotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Undo ``rotate``, its attention factor included: cos^2 + sin^2 is that factor squared."""
    factor = torch.cat([cos, cos], dim=-1).square() + torch.cat([sin, sin], dim=-1).square()
    wide = x.to(wide_type(x))
    return rotate(wide, cos, -sin) / factor[:, None].to(wide.dtype)


def _documents(step: Any) -> Iterator[slice]:
    """The rows of each document."""
    bounds = [int(row) for row in step.cu_rows]
    for start, stop in pairwise(bounds):
        if start < stop:
            yield slice(start, stop)


def _for_products(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values in the type that autocast gives products."""
    kind = q.device.type
    if not torch.is_autocast_enabled(kind) or q.dtype == torch.float64:
        return q, k, v
    dtype = torch.get_autocast_dtype(kind)
    return q.to(dtype), k.to(dtype), v.to(dtype)


def _dense(q: Tensor, k: Tensor, v: Tensor, window: int = 0) -> Tensor:
    """Causal attention of one document: q (n, hq, d), k and v (n, hkv, d); result (n, hq, d). Of the last
    ``window`` tokens, where it is not 0."""
    group = q.shape[1] // k.shape[1]
    if 0 < window < q.shape[0]:
        return _windowed(q, k, v, window)
    q, k, v = (x.transpose(0, 1)[None] for x in (q, k, v))
    y = functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=group > 1)
    return y[0].transpose(0, 1)


def _windowed(q: Tensor, k: Tensor, v: Tensor, window: int) -> Tensor:
    """``_dense`` in parts of rows, each of which reads no more keys than it has rows and a window."""
    size, parts = max(window, WINDOWED_ROWS), []
    for start in range(0, q.shape[0], size):
        stop, first = min(start + size, q.shape[0]), max(start - window + 1, 0)
        rows = torch.arange(start, stop, device=q.device)[:, None]
        keys = torch.arange(first, stop, device=q.device)
        one, k_part, v_part = (x.transpose(0, 1)[None] for x in (q[start:stop], k[first:stop], v[first:stop]))
        y = functional.scaled_dot_product_attention(
            one,
            k_part,
            v_part,
            attn_mask=(keys <= rows) & (keys > rows - window),
            enable_gqa=q.shape[1] > k.shape[1],
        )
        parts.append(y[0].transpose(0, 1))
    return torch.cat(parts)


def _select(q: Tensor, k: Tensor, step: Any) -> Selection:
    """What every row of a step reads. Rows that see no more blocks than they may read have them all."""
    config: SparseConfig = step.sparse
    if config.use_nope:
        cos, sin = step.cos[step.positions], step.sin[step.positions]
        q, k = _unrotate(q, cos, sin), _unrotate(k, cos, sin)
    everything = torch.arange(config.budget, dtype=torch.int32, device=q.device)
    blocks, counts = [], []
    for rows in _documents(step):
        place = torch.arange(rows.stop - rows.start, device=q.device)
        seen = (place // config.block_size + 1).clamp(max=config.budget)
        found = torch.where(everything < seen[:, None], everything, -1)
        found = found[:, None].repeat(1, k.shape[1], 1)
        dense = place + 1 < config.dense_below
        found[dense] = -1
        first = config.first_choosing
        if len(place) > first:
            found[first:] = select_blocks(q[rows], k[rows], config)
        blocks.append(found)
        counts.append(torch.where(dense, -1, seen)[:, None].repeat(1, k.shape[1]).to(torch.int32))
    chosen: Any = torch.cat(blocks), torch.cat(counts)
    return Selection(blocks=chosen[0], counts=chosen[1])


def _sparse(q: Tensor, k: Tensor, v: Tensor, step: Any, blocks: Tensor) -> list[Tensor]:
    """Attention of each row over its blocks (n, hkv, budget), in parts of rows (m, hq, d).

    The first rows of a document read all before them, and are left to the fused kernel.
    """
    size, first = step.sparse.block_size, step.sparse.first_choosing
    parts: list[Tensor] = []
    for rows in _documents(step):
        middle = min(rows.start + first, rows.stop)
        head, tail = slice(rows.start, middle), slice(middle, rows.stop)
        if head.start < head.stop:
            parts.append(_dense(q[head], k[head], v[head]))
        if tail.start < tail.stop:
            last = torch.arange(middle - rows.start, rows.stop - rows.start, device=q.device)
            pages = [_pages(x[rows], size) for x in (k, v)]
            attention = _sparse_attention_for(q)
            parts.append(attention(q[tail], pages[0], pages[1], blocks[tail], last))
    return parts


def _sparse_attention_for(q: Tensor) -> Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]:
    """The GPU's own kernels where there is one and its packages are installed; they have no float64."""
    if q.device.type == "cuda" and q.dtype != torch.float64:
        if find_spec("triton") is not None:
            from minicpm4.kernels.gpu.sparse_train import gpu_sparse_attention

            return gpu_sparse_attention
        _say_no_triton()
    return sparse_attention


@lru_cache(maxsize=1)
def _say_no_triton() -> None:
    """Once a process."""
    logger.warning("Triton is missing: sparse attention on the GPU runs in plain torch, which is slower")


def _pages(x: Tensor, size: int) -> Tensor:
    """x (n, hkv, d) as pages (ceil(n / size), size, hkv, d), the last filled up with zeros."""
    filled = functional.pad(x, (0, 0, 0, 0, 0, -x.shape[0] % size))
    return filled.reshape(-1, size, *x.shape[1:])
