"""Products in the matrix units, on a GPU and in the interpreter."""

from __future__ import annotations

import os

import triton
import triton.language as tl

__all__ = ["INTERPRETED", "dot"]

# Triton's interpreter multiplies the raw bits of bf16: there operands are rounded, and then widened.
INTERPRETED = tl.constexpr(os.environ.get("TRITON_INTERPRET", "0") == "1")


@triton.jit
def dot(a, b, total, EXACT: tl.constexpr):
    """``total + a @ b`` with float32 sums: of bf16 operands, EXACT: of float32 ones."""
    if EXACT:
        total = tl.dot(a.to(tl.float32), b.to(tl.float32), total, input_precision="ieee")
    elif INTERPRETED:
        a, b = a.to(tl.bfloat16).to(tl.float32), b.to(tl.bfloat16).to(tl.float32)
        total = tl.dot(a, b, total, input_precision="ieee")
    else:
        total = tl.dot(a.to(tl.bfloat16), b.to(tl.bfloat16), total)
    return total
