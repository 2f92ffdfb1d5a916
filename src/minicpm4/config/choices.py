"""What users may name: lists that command lines show before anything is loaded."""

from __future__ import annotations

from typing import Literal, get_args

__all__ = ["ACTIVATIONS", "ATTENTIONS", "KV_FORMATS", "MAX_CONTEXT", "WEIGHT_CHOICES", "KVFormat"]

# What weights may be held in: as they are stored, or a kind of formats/kinds.py.
WEIGHT_CHOICES = ("auto", "f32", "bf16", "int8", "int4", "ternary")

KVFormat = Literal["bf16", "int8", "float32"]  # of keys and values in the cache
KV_FORMATS: tuple[str, ...] = get_args(KVFormat)

ACTIVATIONS = ("auto", "int8")  # what meets weights of few bits
ATTENTIONS = ("auto", "dense", "sparse")
MAX_CONTEXT = 1 << 24  # tokens
