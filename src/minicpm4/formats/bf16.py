"""bfloat16 as raw uint16 bits: NumPy has no such type, and a view of the bits is all we need."""

from __future__ import annotations

import sys

import numpy as np
from numpy.typing import NDArray

__all__ = ["bf16_to_f32", "f32_to_bf16"]

_HIGH = 1 if sys.byteorder == "little" else 0  # which half of a float32 its bfloat16 is


def bf16_to_f32(bits: NDArray[np.uint16]) -> NDArray[np.float32]:
    """Return the float32 values (exact) of bfloat16 ``bits``, in the same shape."""
    out = np.zeros((*bits.shape, 2), np.uint16)
    out[..., _HIGH] = bits
    return out.view(np.float32)[..., 0]


def f32_to_bf16(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Return the bfloat16 bits nearest to ``values`` (ties to even; infinities and NaN stay)."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    # Adding just under half an ulp, plus one if the kept part is odd, carries exactly when it should.
    rounded = ((bits >> 16) & 1) + np.uint32(0x7FFF)
    rounded += bits
    rounded >>= 16
    out = rounded.astype(np.uint16)
    nan = np.isnan(values)
    if nan.any():
        # A NaN whose payload is all in the low bits would round to infinity; set its quiet bit.
        out = np.where(nan, (bits >> 16).astype(np.uint16) | np.uint16(0x40), out)
    return out
