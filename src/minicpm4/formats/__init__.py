"""Checkpoints in and out: Hugging Face safetensors and GGUF; packing of INT4, INT8 and ternary."""

from __future__ import annotations

from typing import TYPE_CHECKING

from minicpm4.lazy import at_first_use

if TYPE_CHECKING:
    from minicpm4.formats.checkpoint import Checkpoint, TensorInfo
    from minicpm4.formats.open import check_tensors, open_checkpoint
    from minicpm4.formats.quant import PackedTensor, QuantSpec

__all__ = ["Checkpoint", "PackedTensor", "QuantSpec", "TensorInfo", "check_tensors", "open_checkpoint"]

__getattr__ = at_first_use(
    __name__,
    {
        "Checkpoint": "minicpm4.formats.checkpoint",
        "TensorInfo": "minicpm4.formats.checkpoint",
        "check_tensors": "minicpm4.formats.open",
        "open_checkpoint": "minicpm4.formats.open",
        "PackedTensor": "minicpm4.formats.quant",
        "QuantSpec": "minicpm4.formats.quant",
    },
)
