"""What levels of kernels have in common, for tests that bound what they may lose."""

from __future__ import annotations

TILES = {"amx", "amx_emulated"}  # more than 16 rows by any weights but float32 ones: both sides in bf16
PAIRS = {"avx512_bf16", *TILES}  # attention by dot products of 16-bit pairs
HALVES = {"neon_i8mm", *PAIRS}  # products with bf16 and f16 weights: both sides in bf16


def level(ops: object) -> str:
    return str(getattr(ops, "isa", ""))
