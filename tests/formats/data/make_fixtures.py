"""Make the reference values beside this file; see README.md."""

from __future__ import annotations

import json
import sys
import zlib
from pathlib import Path

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Type

HERE = Path(__file__).parent
ROWS, COLUMNS = 3, 512
# Where each float16 scale starts in a block.
SCALES = {
    "F32": (), "F16": (), "BF16": (), "Q4_0": (0,), "Q4_1": (0, 2), "Q5_0": (0,), "Q5_1": (0, 2),
    "Q8_0": (0,),
    "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,), "TQ1_0": (52,), "TQ2_0": (64,),
    "IQ4_NL": (0,), "Q2_K": (80, 82), "Q3_K": (108,),
}  # fmt: skip


def blocks(name: str, rng: np.random.Generator) -> np.ndarray:
    """Random raw rows of a type: any bytes, but finite scales."""
    kind = Type[name]
    weights = rng.standard_normal((ROWS, COLUMNS)).astype(np.float32)
    if not SCALES[name] or name == "TQ2_0":  # random TQ2_0 bytes would hold code 3
        return gguf.quants.quantize(weights, kind).view(np.uint8).reshape(ROWS, -1)
    block, size = gguf.GGML_QUANT_SIZES[kind]
    raw = rng.integers(0, 256, (ROWS, COLUMNS // block, size), dtype=np.uint8)
    for start in SCALES[name]:
        scale = (rng.standard_normal(raw.shape[:2]) * 0.01).astype(np.float16)
        raw[..., start : start + 2] = scale[..., None].view(np.uint8)
    return raw.reshape(ROWS, -1)


def main(model: str) -> None:
    """Write both files."""
    rng = np.random.default_rng(20)
    arrays = {}
    for name in SCALES:
        raw = blocks(name, rng)
        arrays[f"{name}_raw"] = raw
        stored = raw.view({"F32": np.float32, "F16": np.float16}.get(name, np.uint8))
        arrays[f"{name}_values"] = gguf.quants.dequantize(stored, Type[name]).astype(np.float32)
    np.savez_compressed(HERE / "ggml_blocks.npz", **arrays)
    sums = {}
    for tensor in gguf.GGUFReader(model).tensors:
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        sums[tensor.name] = zlib.crc32(np.ascontiguousarray(values).tobytes())
    (HERE / "smollm2_crc32.json").write_text(json.dumps(sums, indent=0) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1])
