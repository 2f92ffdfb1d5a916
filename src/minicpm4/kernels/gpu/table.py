"""The op table of GPUs: thin calls into Triton kernels. torch allocates and launches, and computes nothing of
weight.

What differs from the contract: arrays are tensors on the device. The residual stream is float32, what lies
between (queries, attention, the feed-forward's inside) ``dtype``. A KVLayer holds tensors of the same shapes,
bf16 as bfloat16. Steps hold host arrays of integers; their copies on the device (``tiles.DeviceRows``) are
made once a step and kept in ``step.native``, and nothing waits for the device.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor

from minicpm4.errors import UnsupportedError
from minicpm4.formats.quant import PackedTensor
from minicpm4.kernels.contract import OpTable
from minicpm4.kernels.gpu import elementwise
from minicpm4.kernels.gpu.append import append, compress, rotate_and_append
from minicpm4.kernels.gpu.attend import attend
from minicpm4.kernels.gpu.linear import linear
from minicpm4.kernels.gpu.select import select
from minicpm4.kernels.gpu.settle import move
from minicpm4.kernels.gpu.tiles import DeviceRows
from minicpm4.kernels.gpu.weights import TYPES, DeviceMatrix, device_matrix, fill, to_device, weight_kinds
from minicpm4.kernels.layer_weights import AttentionWeights, FeedForwardWeights, Linear
from minicpm4.kernels.step import Accepted, Ints, KVLayer, Selection, Step

__all__ = ["GpuOps"]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Projections:
    """Matrices that share an input, as one below the other where their formats allow, else each by itself;
    the norm before them; norms of the heads of queries and keys."""

    norm: Tensor
    joined: DeviceMatrix | None
    each: tuple[DeviceMatrix, ...] = ()
    heads: tuple[Tensor, Tensor] | None = None


class GpuOps(OpTable):
    """Op table of one device; ``dtype``: the type of what lies between the layers' products.

    Under ``TRITON_INTERPRET=1`` the same kernels run on the CPU: for tests, and very slowly.
    """

    name = "gpu"
    on_host = False
    kv_formats = ("bf16", "float32")
    reads_windows = False
    widens = True
    layout = "rows-wide"

    def __init__(self, device: torch.device, dtype: torch.dtype = torch.bfloat16) -> None:
        self.device, self.dtype = device, dtype
        where = torch.cuda.get_device_name(device) if device.type == "cuda" else "the interpreter"
        kind = str(dtype).removeprefix("torch.")
        self.weight_kinds = weight_kinds()
        self.description = f"gpu: Triton {triton.__version__} on {where}, activations {kind}"

    def available_memory(self) -> int | None:
        if self.device.type != "cuda":  # interpreted: tensors are the host's
            return super().available_memory()
        return torch.cuda.mem_get_info(self.device)[0]

    def zeros(self, shape: tuple[int, ...], dtype: Any) -> Any:
        return torch.zeros(shape, dtype=TYPES[dtype], device=self.device)

    def put(self, array: Any) -> Any:
        return to_device(array, self.device)

    def get(self, array: Any) -> Any:
        return (array.float() if array.dtype == torch.bfloat16 else array).cpu().numpy()

    @staticmethod
    def refresh(part: Linear | AttentionWeights | FeedForwardWeights) -> None:
        found = (part.weight if isinstance(part, Linear) else part).native.get(GpuOps.name)
        if found is None:
            return
        if isinstance(part, Linear):
            fill(found, (part,))
            return
        linears: tuple[Linear, ...]
        if isinstance(part, AttentionWeights):
            linears, heads = (part.q, part.k, part.v), (part.q_norm, part.k_norm)
        else:
            linears, heads = (part.gate, part.up), (None, None)
        if found.joined is not None:
            fill(found.joined, linears)
        for tensor, array in zip((found.norm, *(found.heads or ())), (part.norm, *heads), strict=False):
            if array is not None:
                tensor.copy_(to_device(array, tensor.device))

    # Primitives. Arguments that the contract calls arrays are tensors.

    def embed(self, table: PackedTensor, ids: Any, scale: float, out: Any = None) -> Any:
        ids = self.ints(ids)
        matrix = self._matrix(Linear(weight=table))
        return elementwise.embed(matrix, ids, scale, self._result(out, (len(ids), table.shape[1])))

    def rms_norm(self, x: Any, weight: Any, eps: float, out: Any = None) -> Any:
        return elementwise.rms_norm(x, self._vector(weight), eps, self._result(out, x.shape))

    def linear(self, x: Any, linear: Linear, out: Any = None) -> Any:
        return self._linear(x, self._matrix(linear), self._result(out, (x.shape[0], linear.weight.shape[0])))

    def rotary(self, x: Any, positions: Any, cos: Any, sin: Any) -> Any:
        angles = self._vector(cos), self._vector(sin)
        return elementwise.rotary(x.contiguous(), self.ints(positions), *angles)

    def append(self, k: Any, v: Any, kv: KVLayer, step: Step) -> None:
        append(k, v, _pages(kv), self.rows(step), *self._angles(step), step.sparse)

    def settle(self, kv: KVLayer, step: Step, accepted: Accepted) -> None:
        sources, plain = accepted.moves(step)
        found = accepted.native.get(self.name)
        if found is None:
            found = accepted.native[self.name] = self.ints(sources), self.ints(plain.cu_rows)
        move(_pages(kv), self.rows(plain), *found)
        compress(kv, self.rows(plain), *self._angles(plain), step.sparse)

    def select(self, q: Any, kv: KVLayer, step: Step) -> Selection:
        config = step.sparse
        assert config is not None
        rows = self.rows(step)
        if config.use_nope:
            q = _unrotated(q, rows, *self._angles(step))
        shape = (step.num_rows, kv.num_kv_heads)
        blocks: Any = torch.empty((*shape, config.budget), dtype=torch.int32, device=self.device)
        counts: Any = torch.empty(shape, dtype=torch.int32, device=self.device)
        select(q.contiguous(), _pages(kv), rows, *self._angles(step), config, blocks, counts)
        return Selection(blocks=blocks, counts=counts)

    def attend(self, q: Any, kv: KVLayer, step: Step, selection: Selection | None, out: Any = None) -> Any:
        shape = (q.shape[0], q.shape[1] * q.shape[2])
        out = self._result(out, shape, self._between(kv))
        return attend(q.contiguous(), _pages(kv), self.rows(step), selection, out)

    def join(self, parts: Any) -> Any:
        return torch.cat(list(parts), dim=-1)

    def silu_mul(self, gate: Any, up: Any, out: Any = None) -> Any:
        return elementwise.silu_mul(gate, up, self._result(out, gate.shape))

    def log_sum_exp(self, logits: Any) -> Any:
        return elementwise.log_sum_exp(logits)

    def top_k(self, logits: Any, k: int) -> tuple[Any, Any]:
        return elementwise.top_k(logits, k)

    # Coarse ops.

    def qkv(self, x: Any, w: AttentionWeights, kv: KVLayer, step: Step, out: Any = None) -> Any:
        n, d, hkv = step.num_rows, kv.head_dim, kv.num_kv_heads
        weights = self._projections(w, w.norm, (w.q, w.k, w.v), w.q_norm, w.k_norm)
        q, k, v = self._heads(self._products(x, weights, w.eps, self._between(kv)), hkv, d)
        q_out = self._result(out, (n, q.shape[1] * d), self._between(kv)).view(n, -1, d)
        angles = self._angles(step)
        rotate_and_append(
            q, k, v, q_out, weights.heads, w.eps, _pages(kv), self.rows(step), *angles, step.sparse
        )
        return q_out

    def add_linear(self, x: Any, a: Any, linear: Linear, scale: float) -> Any:
        return self._linear(a, self._matrix(linear), x, residual=x, factor=scale)

    def gate_up(self, x: Any, w: FeedForwardWeights, out: Any = None) -> Any:
        weights = self._projections(w, w.norm, (w.gate, w.up))
        ff = w.gate.weight.shape[0]
        out = self._result(out, (x.shape[0], ff), self.dtype)
        if x.shape[0] == 1 and weights.joined is not None:
            return linear(x, weights.joined, out, norm=(weights.norm, w.eps), gated=True)
        parts = self._products(x, weights, w.eps, self.dtype)
        gate, up = parts if len(parts) == 2 else parts[0].split([ff, ff], dim=1)
        return elementwise.silu_mul(gate, up, out)

    # What the kernels read

    def rows(self, step: Step) -> DeviceRows:
        """The step's integers on the device."""
        found = step.native.get(self.name)
        if found is None:
            found = step.native[self.name] = DeviceRows(step, self.device)
        return found

    def ints(self, array: Ints | Tensor) -> Tensor:
        """Integers on the device."""
        return array if isinstance(array, Tensor) else to_device(array.astype("int32"), self.device)

    def angles(self, cos: Any, sin: Any) -> tuple[Any, Any]:
        """A rotary table on the device; a step may carry it in the place of the host's."""
        return self._vector(cos), self._vector(sin)

    def _angles(self, step: Step) -> tuple[Tensor, Tensor]:
        found = step.native.get("gpu angles")
        if found is None:
            found = step.native["gpu angles"] = self.angles(step.cos, step.sin)
        return found

    def _vector(self, array: Any) -> Tensor:
        return array if isinstance(array, Tensor) else to_device(array, self.device)

    def _matrix(self, linear: Linear) -> DeviceMatrix:
        """The device's copy of a matrix and its bias, made once."""
        found = linear.weight.native.get(self.name)
        if found is None:
            found = device_matrix([linear], self.device)
            linear.weight.native[self.name] = found
        assert found is not None
        return found

    def _projections(
        self,
        w: AttentionWeights | FeedForwardWeights,
        norm: Any,
        linears: tuple[Linear, ...],
        q_norm: Any = None,
        k_norm: Any = None,
    ) -> _Projections:
        found = w.native.get(self.name)
        if found is None:
            joined = device_matrix(linears, self.device)
            heads = None if q_norm is None else (self._vector(q_norm), self._vector(k_norm))
            each = () if joined else tuple(self._matrix(linear) for linear in linears)
            found = _Projections(norm=self._vector(norm), joined=joined, each=each, heads=heads)
            w.native[self.name] = found
        return found

    def _products(self, x: Tensor, weights: _Projections, eps: float, dtype: torch.dtype) -> list[Tensor]:
        """Products of the normed x with the matrices: one wide result where they are joined."""
        matrices = weights.each or (weights.joined,)
        norm: tuple[Tensor, float] | None = (weights.norm, eps)
        if x.shape[0] != 1:
            to = torch.empty(x.shape, dtype=dtype, device=x.device)
            x, norm = elementwise.rms_norm(x, weights.norm, eps, to), None
        results = []
        for matrix in matrices:
            assert matrix is not None
            out = torch.empty((x.shape[0], matrix.shape[0]), dtype=dtype, device=x.device)
            results.append(linear(x, matrix, out, norm=norm))
        return results

    def _heads(self, parts: list[Tensor], hkv: int, d: int) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values (n, heads, d) of one wide product, or of one product each."""
        heads = [part.view(part.shape[0], -1, d) for part in parts]
        if len(heads) == 1:
            heads = list(heads[0].split([heads[0].shape[1] - 2 * hkv, hkv, hkv], dim=1))
        return heads[0], heads[1], heads[2]

    def _linear(self, x: Tensor, matrix: DeviceMatrix, out: Tensor, **more: Any) -> Tensor:
        return linear(x.contiguous(), matrix, out, **more)

    def _result(self, out: Any, shape: Any, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(tuple(shape), dtype=dtype, device=self.device) if out is None else out

    def _between(self, kv: KVLayer) -> torch.dtype:
        """The type of queries and attention: with pages of float32 nothing is rounded."""
        keys: Any = kv.keys
        return torch.float32 if keys.dtype == torch.float32 else self.dtype


def _pages(kv: KVLayer) -> KVLayer:
    """``kv``. Raises UnsupportedError for pages that the kernels do not read."""
    if kv.key_scales is not None:
        raise UnsupportedError("the GPU has no kernels for pages of int8", "use kv='bf16'")
    return kv


def _unrotated(q: Tensor, rows: DeviceRows, cos: Tensor, sin: Tensor) -> Tensor:
    """Queries before their rotation, float32; cos^2 + sin^2 is the attention factor squared."""
    at = rows.angles.long()
    c, s = cos[at][:, None], sin[at][:, None]
    a, b = q.float().chunk(2, dim=-1)
    return torch.cat([a * c + b * s, b * c - a * s], dim=-1) / torch.cat([c, c], dim=-1).square().add(
        torch.cat([s, s], dim=-1).square()
    )
