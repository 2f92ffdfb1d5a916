"""GGML tensor types: block sizes, and exact decoding of each into our packed layout.

A decoder takes the raw blocks of some rows, uint8 (rows, blocks, bytes per block), and returns
the arrays of a matrix as in formats/quant.py, by name. "Exact" means that scale * code + offset
evaluates in float32 to the very numbers that GGML's own dequantisation gives.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minicpm4.errors import CheckpointError
from minicpm4.formats import ggml_encode
from minicpm4.formats.codes import pack_fives, pack_nibbles, pack_pairs, pack_sixes, pack_threes
from minicpm4.formats.packing import row_slices
from minicpm4.formats.quant import PackedTensor, QuantSpec, ScaleForm, scale_types

__all__ = ["GGML_TYPES", "TYPE_NAMES", "GgmlType", "encoded"]

Decoded = dict[str, NDArray]
Decoder = Callable[[NDArray[np.uint8]], Decoded]
Encoder = Callable[[NDArray, ggml_encode.Scales, ggml_encode.Scales | None], NDArray[np.uint8]]


@dataclass(frozen=True, kw_only=True, slots=True)
class GgmlType:
    """One tensor type: ``block`` weights take ``nbytes`` bytes; ``decode`` is None for float types, in which
    ``stored`` says how weights lie in the file where that is not as in their format. ``encode``, the inverse
    of ``decode`` (formats/ggml_encode.py), is None where nothing writes a type. ``narrows``: weights mostly
    are of a kind with fewer bits than ``spec`` has, which must hold all that a block may. ``scales``: their
    form, and that of offsets."""

    name: str
    block: int
    nbytes: int
    spec: QuantSpec
    decode: Decoder | None = None
    encode: Encoder | None = None
    scales: ScaleForm = "f16"
    offsets: bool = False
    stored: str = ""
    narrows: bool = False

    @property
    def writable(self) -> bool:
        """Whether matrices can be written in it (``encoded``)."""
        return self.decode is None or self.encode is not None

    @property
    def types(self) -> dict[str, np.dtype[Any]]:
        """The types of the arrays that ``decode`` gives, by name."""
        return {"codes": self.spec.row.codes} | scale_types(self.scales, self.offsets)


def _field(raw: NDArray[np.uint8], start: int, kind: str) -> NDArray:
    """What lies at byte ``start`` of each block, (rows, blocks): a copy, item by item.

    Copying items of 16 or 32 bytes is five times as fast as copying so many single bytes.
    """
    whole = np.dtype({"names": ["x"], "formats": [kind], "offsets": [start], "itemsize": raw.shape[-1]})
    return np.ascontiguousarray(np.ascontiguousarray(raw).view(whole)["x"][..., 0])


def _f16(raw: NDArray[np.uint8], start: int) -> NDArray[np.float16]:
    """The float16 at byte ``start`` of each block: (rows, blocks)."""
    return _field(raw, start, "<f2").astype(np.float16, copy=False)


def _bytes_from(raw: NDArray[np.uint8], start: int) -> NDArray[np.uint8]:
    """The bytes of each block from ``start`` to its end: (rows, blocks x bytes)."""
    return _flat(_field(raw, start, f"V{raw.shape[-1] - start}")).view(np.uint8)


def _nibbles(raw: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Low nibbles, then high nibbles, of the last axis: (..., n) to (..., 2n)."""
    return np.concatenate([raw & np.uint8(15), raw >> np.uint8(4)], axis=-1)


def _flat(array: NDArray) -> NDArray:
    return np.ascontiguousarray(array).reshape(array.shape[0], -1)


def _plain(codes: NDArray, scales: NDArray, offsets: NDArray | None = None) -> Decoded:
    found = {"codes": codes, "scales": scales}
    return found if offsets is None else found | {"offsets": offsets}


def _q4_0(raw: NDArray[np.uint8]) -> Decoded:
    return _plain(_bytes_from(raw, 2), _f16(raw, 0))


def _q4_1(raw: NDArray[np.uint8]) -> Decoded:
    return _plain(_bytes_from(raw, 4), _f16(raw, 0), _f16(raw, 2))


def _q8_0(raw: NDArray[np.uint8]) -> Decoded:
    return _plain(_bytes_from(raw, 2).view(np.int8), _f16(raw, 0))


def _fives(raw: NDArray[np.uint8], start: int) -> NDArray[np.uint8]:
    """Codes whose fifth bits are four bytes from ``start`` on, whose others are the 16 bytes behind these."""
    parts = _field(raw, start + 4, "V16"), _field(raw, start, "V4")
    lead = raw.shape[:2]
    return _flat(np.concatenate([part.view(np.uint8).reshape(*lead, -1) for part in parts], axis=-1))


def _q5_0(raw: NDArray[np.uint8]) -> Decoded:
    return _plain(_fives(raw, 2), _f16(raw, 0))


def _q5_1(raw: NDArray[np.uint8]) -> Decoded:
    return _plain(_fives(raw, 4), _f16(raw, 0), _f16(raw, 2))


def _k_scales(raw: NDArray[np.uint8]) -> Decoded:
    """Scales and offsets of the eight 32-weight groups of Q4_K and Q5_K super-blocks.

    Twelve bytes hold 8 + 8 six-bit numbers: four of each in the low six bits of bytes 0-3 and 4-7;
    of the other four, the low nibble is in bytes 8-11 and the top two bits atop bytes 0-7.
    """
    a, b, c = raw[..., 4:8], raw[..., 8:12], raw[..., 12:16]
    scale = np.concatenate([a & 63, (c & 15) | ((a >> 6) << 4)], axis=-1)
    minimum = np.concatenate([b & 63, (c >> 4) | ((b >> 6) << 4)], axis=-1)
    return {
        "scales": _flat(scale).view(np.int8),
        "offsets": _flat(minimum).view(np.int8),
        "super_scales": _f16(raw, 0),
        "super_offsets": -_f16(raw, 2),
    }


def _k_nibbles(raw: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Four runs of 32 bytes; in each, low nibbles are 32 weights and high nibbles the next 32."""
    return _nibbles(raw.reshape(*raw.shape[:2], 4, 32)).reshape(*raw.shape[:2], 256)


def _q4_k(raw: NDArray[np.uint8]) -> Decoded:
    return {"codes": pack_nibbles(_flat(_k_nibbles(raw[..., 16:])))} | _k_scales(raw)


def _pairs(raw: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Runs of 32 bytes; in each the lowest two bits are 32 weights, those above them the next 32, and so on:
    uint8 (rows, blocks, bytes) to (rows, blocks, 4 x bytes)."""
    lead = raw.shape[:2]
    shifts = np.arange(0, 8, 2, dtype=np.uint8).reshape(1, 1, 1, 4, 1)
    return ((raw.reshape(*lead, -1, 1, 32) >> shifts) & np.uint8(3)).reshape(*lead, -1)


def _bits(raw: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Bit k of byte j of 32 is of weight 32 k + j: 0 or 1 (rows, blocks, 256)."""
    shifts = np.arange(8, dtype=np.uint8).reshape(8, 1)
    return ((raw[..., None, :] >> shifts) & np.uint8(1)).reshape(*raw.shape[:2], 256)


def _q2_k(raw: NDArray[np.uint8]) -> Decoded:
    # A byte for each 16 weights: the scale's multiple in its low, that of the offset in its high bits.
    return {
        "codes": pack_pairs(_flat(_pairs(raw[..., 16:80]))),
        "scales": _flat(raw[..., :16]),
        "super_scales": _f16(raw, 80),
        "super_offsets": -_f16(raw, 82),
    }


def _q3_k(raw: NDArray[np.uint8]) -> Decoded:
    # A bit of the first 32 bytes is set where a weight is not to be four less.
    codes = _pairs(raw[..., 32:96]) | _bits(raw[..., :32]) << np.uint8(2)
    # Sixteen six-bit numbers: low nibbles, then high ones, of 8 bytes; their top bits in the next 4.
    low, top = raw[..., 96:104], raw[..., 104:108]
    shifts = np.arange(0, 8, 2, dtype=np.uint8).reshape(4, 1)
    tops = ((top[..., None, :] >> shifts) & np.uint8(3)).reshape(*raw.shape[:2], 16)
    steps = (_nibbles(low) | (tops << np.uint8(4))).view(np.int8) - np.int8(32)
    return _plain(pack_threes(_flat(codes)), _flat(steps)) | {"super_scales": _f16(raw, 108)}


# The numbers that codes of IQ4_NL stand for.
_IQ4_NL = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.int8)


def _iq4_nl(raw: NDArray[np.uint8]) -> Decoded:
    return _plain(_flat(_IQ4_NL[_nibbles(raw[..., 2:])]), _f16(raw, 0))


def _q2_0(raw: NDArray[np.uint8]) -> Decoded:
    # Codes 0 to 3, neighbours in a byte, lowest bits first, stand for -1 to 2; those of int4 have 8 added.
    shifts = np.arange(0, 8, 2, dtype=np.uint8)
    codes = ((raw[..., 2:, None] >> shifts) & np.uint8(3)) + np.uint8(7)
    return _plain(pack_nibbles(_flat(codes)), _f16(raw, 0))


def _q5_k(raw: NDArray[np.uint8]) -> Decoded:
    codes = _k_nibbles(raw[..., 48:]) | _bits(raw[..., 16:48]) << np.uint8(4)
    return {"codes": pack_fives(_flat(codes))} | _k_scales(raw)


def _q6_k(raw: NDArray[np.uint8]) -> Decoded:
    lead = raw.shape[:2]
    # Each half of 128 weights: 64 bytes of low nibbles (first all low, then all high), 32 of top bits.
    low = _nibbles(raw[..., :128].reshape(*lead, 2, 64))
    top = _pairs(raw[..., 128:192]).reshape(*lead, 2, 128)
    codes = low | top << np.uint8(4)
    steps = np.ascontiguousarray(raw[..., 192:208]).view(np.int8)
    return _plain(pack_sixes(_flat(codes)), _flat(steps)) | {"super_scales": _f16(raw, 208)}


def _tq1_0(raw: NDArray[np.uint8]) -> Decoded:
    lead = raw.shape[:2]
    parts = []
    # Five base-3 digits a byte, the byte being ceil(number * 256 / 243): multiplying it by 3**k
    # (mod 256) moves digit k to the top, and * 3 >> 8 reads it.
    for start, stop, digits in ((0, 32, 5), (32, 48, 5), (48, 52, 4)):
        powers = np.array([3**k for k in range(digits)], np.uint8).reshape(1, 1, digits, 1)
        moved = raw[..., None, start:stop] * powers
        parts.append(((moved.astype(np.uint16) * 3) >> 8).astype(np.uint8).reshape(*lead, -1))
    return _plain(pack_pairs(_flat(np.concatenate(parts, axis=-1))), _f16(raw, 52))


def _tq2_0(raw: NDArray[np.uint8]) -> Decoded:
    bits = raw[..., :64]
    if (bits & (bits >> np.uint8(1)) & np.uint8(0x55)).any():
        raise CheckpointError("a TQ2_0 block holds code 3, which stands for no ternary weight")
    return _plain(pack_pairs(_flat(_pairs(bits))), _f16(raw, 64))


def _spec(kind: str, group: int = 0) -> QuantSpec:
    return QuantSpec(kind=kind, group_size=group)


_I4, _I5, _I8 = _spec("int4", 32), _spec("int5", 32), _spec("int8", 32)
_TERNARY = _spec("ternary", 256)

GGML_TYPES: dict[int, GgmlType] = {
    0: GgmlType(name="F32", block=1, nbytes=4, spec=_spec("f32")),
    1: GgmlType(name="F16", block=1, nbytes=2, spec=_spec("f16")),
    2: GgmlType(name="Q4_0", block=32, nbytes=18, spec=_I4, decode=_q4_0, encode=ggml_encode.q4_0),
    3: GgmlType(
        name="Q4_1", block=32, nbytes=20, spec=_I4, decode=_q4_1, encode=ggml_encode.q4_1, offsets=True
    ),
    6: GgmlType(name="Q5_0", block=32, nbytes=22, spec=_I5, decode=_q5_0, encode=ggml_encode.q5_0),
    7: GgmlType(
        name="Q5_1", block=32, nbytes=24, spec=_I5, decode=_q5_1, encode=ggml_encode.q5_1, offsets=True
    ),
    8: GgmlType(name="Q8_0", block=32, nbytes=34, spec=_I8, decode=_q8_0, encode=ggml_encode.q8_0),
    10: GgmlType(
        name="Q2_K",
        block=256,
        nbytes=84,
        spec=_spec("int2", 16),
        decode=_q2_k,
        scales="half steps",
        offsets=True,
    ),
    11: GgmlType(name="Q3_K", block=256, nbytes=110, spec=_spec("int3", 16), decode=_q3_k, scales="steps"),
    12: GgmlType(
        name="Q4_K",
        block=256,
        nbytes=144,
        spec=_I4,
        decode=_q4_k,
        encode=ggml_encode.q4_k,
        scales="steps",
        offsets=True,
    ),
    13: GgmlType(
        name="Q5_K",
        block=256,
        nbytes=176,
        spec=_I5,
        decode=_q5_k,
        encode=ggml_encode.q5_k,
        scales="steps",
        offsets=True,
    ),
    14: GgmlType(
        name="Q6_K",
        block=256,
        nbytes=210,
        spec=_spec("int6", 16),
        decode=_q6_k,
        encode=ggml_encode.q6_k,
        scales="steps",
    ),
    20: GgmlType(name="IQ4_NL", block=32, nbytes=18, spec=_I8, decode=_iq4_nl),
    28: GgmlType(name="F64", block=1, nbytes=8, spec=_spec("f32"), stored="<f8"),
    30: GgmlType(name="BF16", block=1, nbytes=2, spec=_spec("bf16")),
    34: GgmlType(name="TQ1_0", block=256, nbytes=54, spec=_TERNARY, decode=_tq1_0, encode=ggml_encode.tq1_0),
    35: GgmlType(name="TQ2_0", block=256, nbytes=66, spec=_TERNARY, decode=_tq2_0, encode=ggml_encode.tq2_0),
    42: GgmlType(
        name="Q2_0",
        block=64,
        nbytes=18,
        spec=_spec("int4", 64),
        decode=_q2_0,
        encode=ggml_encode.q2_0,
        narrows=True,
    ),
}


def encoded(tensor: PackedTensor, kind: GgmlType) -> NDArray[np.uint8]:
    """The bytes of a matrix in a type of its format, (rows, bytes): read again, they are the same matrix
    where blocks can represent it. Raises CheckpointError."""
    if tensor.spec != kind.spec or tensor.layout != "rows":
        raise CheckpointError(
            f"weights in {tensor.spec} cannot be written as {kind.name}", f"convert them to {kind.spec} first"
        )
    rows, columns = tensor.shape
    if not kind.writable:
        raise CheckpointError(f"{kind.name} can be read, not written", "write Q4_0, Q8_0 or another type")
    if kind.encode is None:
        codes = tensor.codes.astype(kind.stored) if kind.stored else tensor.codes
        return np.ascontiguousarray(codes).view(np.uint8).reshape(rows, -1)
    if columns % kind.block:
        raise CheckpointError(f"{columns} columns do not fill blocks of {kind.block} ({kind.name})")
    out = np.empty((rows, columns // kind.block * kind.nbytes), np.uint8)
    for part in row_slices(rows, columns):
        scales, offsets = ggml_encode.scales_of(tensor, part)
        if offsets is None and kind.offsets:
            offsets = ggml_encode.Scales(scales.values * np.float32(-tensor.spec.row.zero))
        out[part] = kind.encode(tensor.spec.row.unpack(tensor.codes[part]), scales, offsets).reshape(
            out[part].shape
        )
    return out


# Types that exist but have no decoder here: named in the refusal.
TYPE_NAMES = {
    9: "Q8_1",
    15: "Q8_K",
    16: "IQ2_XXS",
    17: "IQ2_XS",
    18: "IQ3_XXS",
    19: "IQ1_S",
    21: "IQ3_S",
    22: "IQ2_S",
    23: "IQ4_XS",
    24: "I8",
    25: "I16",
    26: "I32",
    27: "I64",
    29: "IQ1_M",
    39: "MXFP4",
    40: "NVFP4",
    41: "Q1_0",
}
