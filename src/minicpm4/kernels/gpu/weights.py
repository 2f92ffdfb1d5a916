"""Weight matrices in GPU memory, as the kernels read them.

The layout is that of ``formats/quant.py``, "rows": codes of a row lie together, and 16 bytes of grouped codes
are a unit of 16, 32 or 64 weights. Nothing is rearranged, so a checkpoint goes from its mapped file to the
device as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from minicpm4.errors import UnsupportedError
from minicpm4.formats.codes import UNIT_BITS
from minicpm4.formats.kinds import KINDS
from minicpm4.formats.quant import PackedTensor, QuantSpec
from minicpm4.kernels.layer_weights import Linear

PARTS = ("codes", "scales", "offsets")  # those of scales in one level

__all__ = ["TYPES", "DeviceMatrix", "device_matrix", "fill", "to_device", "weight_kinds"]

TYPES: dict[Any, torch.dtype] = {
    np.float32: torch.float32,
    np.uint16: torch.bfloat16,
    np.int16: torch.int16,
    np.int32: torch.int32,
}
"""What stands for NumPy's types on the device."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class DeviceMatrix:
    """``codes``: float32, float16 or bfloat16 (out, in), or grouped codes as int32 words (out, words);
    ``scales`` and ``offsets`` (out, groups) float16 or float32; ``bias`` (out,) float32."""

    spec: QuantSpec
    shape: tuple[int, int]
    codes: Tensor
    scales: Tensor | None = None
    offsets: Tensor | None = None
    bias: Tensor | None = None

    @property
    def bits(self) -> int:
        """Bits of a grouped code; 0 where codes are the weights."""
        return self.spec.row.bits if self.spec.group_size else 0

    @property
    def zero(self) -> int:
        """The unsigned code that stands for 0, where there are no offsets."""
        if self.bits == 8:
            return 128  # the kernels flip the sign bit
        return 0 if self.offsets is not None else self.spec.row.zero


def weight_kinds() -> frozenset[str]:
    """Kinds that the kernels read: floats, and codes in units of 16 bytes that are evenly spaced."""
    return frozenset(
        name
        for name, row in KINDS.items()
        if not row.group or (not (row.levels or row.wider) and UNIT_BITS.get(row.unpack) == row.bits)
    )


def to_device(array: NDArray, device: torch.device) -> Tensor:
    """A copy of ``array`` on ``device``; raw bf16 (uint16) becomes bfloat16."""
    signed = array.view(np.int16) if array.dtype == np.uint16 else array
    # Mapped files are read-only, which torch warns of: so a buffer of its own, then the device.
    staged = torch.from_numpy(np.array(signed, copy=True, order="C"))
    moved = staged.to(device)
    return moved.view(torch.bfloat16) if array.dtype == np.uint16 else moved


def device_matrix(linears: Sequence[Linear], device: torch.device) -> DeviceMatrix | None:
    """Matrices of one format and width, one below the other, as one; None where they differ in that.

    Raises UnsupportedError for weights that a CPU table has rearranged.
    """
    weights = [linear.weight for linear in linears]
    first = weights[0]
    for weight in weights:
        if weight.layout != "rows":
            raise UnsupportedError(
                f"weights in the CPU's layout {weight.layout!r} cannot be read by the GPU",
                "load the model with backend='gpu'",
            )
        if weight.two_level:
            raise UnsupportedError("scales of two levels cannot be read by the GPU", "widen the weights")
        if _kind(weight) != _kind(first):
            return None
    biases = None
    if any(linear.bias is not None for linear in linears):
        biases = np.concatenate(
            [np.zeros(x.weight.shape[0], np.float32) if x.bias is None else x.bias for x in linears]
        )
    parts = {name: [getattr(weight, name) for weight in weights] for name in PARTS}
    codes, scales, offsets = (
        None if arrays[0] is None else torch.cat([to_device(array, device) for array in arrays])
        for arrays in parts.values()
    )
    assert codes is not None
    row = first.spec.row
    return DeviceMatrix(
        spec=first.spec,
        shape=(sum(weight.shape[0] for weight in weights), first.shape[1]),
        codes=codes.view(torch.int32) if row.group else codes.to(getattr(torch, row.dtype)),
        scales=scales,
        offsets=offsets,
        bias=None if biases is None else to_device(biases, device),
    )


def fill(matrix: DeviceMatrix, linears: Sequence[Linear]) -> None:
    """Put the weights of ``linears`` where those are that ``matrix`` was made of: at the same addresses."""
    start = 0
    for linear in linears:
        new, stop = device_matrix([linear], matrix.codes.device), start + linear.weight.shape[0]
        assert new is not None and new.spec == matrix.spec
        for part in (*PARTS, "bias"):
            target, values = getattr(matrix, part), getattr(new, part)
            if target is not None and values is not None:
                target[start:stop].copy_(values)
        start = stop


def _kind(weight: PackedTensor) -> tuple[object, ...]:
    parts = (weight.scales, weight.offsets)
    return (weight.spec, weight.shape[1], *(None if part is None else part.dtype for part in parts))
