"""Checkpoints in and out: Hugging Face safetensors and GGUF; packing of INT4, INT8 and ternary."""

from minicpm4.formats.checkpoint import Checkpoint, TensorInfo
from minicpm4.formats.open import check_tensors, open_checkpoint
from minicpm4.formats.quant import PackedTensor, QuantSpec

__all__ = ["Checkpoint", "PackedTensor", "QuantSpec", "TensorInfo", "check_tensors", "open_checkpoint"]
