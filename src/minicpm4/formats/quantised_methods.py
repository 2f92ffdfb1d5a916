"""How the methods by which other tools quantise lay a matrix out.

A matrix W (out, in) is there as several tensors under the name of its layer, words of 32 bits with codes in
them (``formats/words.py``, ``formats/marlin.py``) and scales. With b bits a code, k = 32 / b codes a word, g
groups:

    gptq    qweight (in / k, out), qzeros (g, out / k), scales (g, out), g_idx (in); ``checkpoint_format``
            gptq stores words of zeros less 1 each (0x11111111 for 4 bits: a zero of 0 borrows from the next),
            gptq_v2 zeros
    marlin  qweight (in / 16, 2 out), scales (g, out), both in the kernel's order; q, k and v are one matrix,
            qkv_proj, gate and up another, gate_up_proj: their rows one after another
    awq     qweight (in, out / k), qzeros (g, out / k), scales (g, out); columns of a word in AWQ_ORDER
    compressed-tensors
            weight_packed (out, in / k), weight_scale (out, g), weight_zero_point (out / k, g), weight_shape;
            codes and zeros have 2**(b - 1) added
    mlx     weight (out, in / k), scales (out, g), biases (out, g)

A weight is scale * (code - zero), of MLX scale * code + bias; where no zero is stored it is 2**(b - 1).
"""

from __future__ import annotations

from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

from minicpm4.errors import CheckpointError
from minicpm4.formats.marlin import MARLIN_COLUMNS, MARLIN_ROWS, scales_in_order, unpack_tiles
from minicpm4.formats.quantised_matrix import (
    FLOATS,
    OWN_CONFIG,
    REMEDY,
    Layout,
    Parts,
    QuantisedMatrix,
    Scheme,
)
from minicpm4.formats.words import awq_columns, moved_words, unpack_words

__all__ = ["FUSED", "Awq", "Compressed", "Gptq", "Marlin", "Mlx"]

FUSED = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}
"""Marlin's matrices of several, and those in them."""


class Gptq(QuantisedMatrix):
    """GPTQ's."""

    def _measure(self, packed: tuple[int, int]) -> int:
        self.shape = (packed[1], packed[0] * 32 // self.bits)
        return self.shape[1]

    def _wanted(self, groups: int) -> dict[str, tuple[int, int]]:
        rows = self.shape[0]
        return {"scales": (groups, rows), "qzeros": (groups, -(-rows * self.bits // 32))}

    def _codes(self, rows: slice) -> NDArray[np.uint8]:
        words = self._parts["qweight"].view()[:, rows]
        return unpack_words(np.ascontiguousarray(words.T), self.bits)

    def _scales(self) -> NDArray[np.float32]:
        return self._floats("scales").T

    def _zeros(self) -> NDArray[np.int32]:
        words = moved_words(self._parts["qzeros"].view(), self.bits, self.layout.zero_first)
        return self._unpacked_zeros(words)[:, : self.shape[0]].T.astype(np.int32)

    def _unpacked_zeros(self, words: NDArray) -> NDArray[np.uint8]:
        return unpack_words(words, self.bits)


class Awq(Gptq):
    """AWQ's, version gemm."""

    def _measure(self, packed: tuple[int, int]) -> int:
        self.shape = (packed[1] * 32 // self.bits, packed[0])
        return self.shape[1]

    def _codes(self, rows: slice) -> NDArray[np.uint8]:
        words = self._parts["qweight"].view()
        return awq_columns(np.ascontiguousarray(words[:, rows.start // 8 : -(-rows.stop // 8)])).T

    def _unpacked_zeros(self, words: NDArray) -> NDArray[np.uint8]:
        return awq_columns(words)


class Marlin(QuantisedMatrix):
    """CPM.cu's, symmetric, of 4 bits; ``rows``: those of the stored matrix that are this one's."""

    def __init__(self, layout: Layout, name: str, parts: Parts, at: tuple[int, int, int] = (0, 1, 1)) -> None:
        self._at = at
        super().__init__(layout, name, parts)
        self.nbytes = self.nbytes * (at[1] - at[0]) // at[2]

    @classmethod
    def read(cls, layout: Layout, name: str, parts: Parts) -> dict[str, QuantisedMatrix]:
        stem, last = name.removesuffix(".weight").rpartition(".")[::2]
        if last not in FUSED:
            return {name: cls(layout, name, parts)}
        names, (queries, keys) = FUSED[last], layout.heads
        stops = list(accumulate((queries, keys, keys) if last == "qkv_proj" else (1, 1)))
        return {
            f"{stem}.{own}.weight": cls(layout, f"{stem}.{own}.weight", parts, (start, stop, stops[-1]))
            for own, start, stop in zip(names, (0, *stops), stops, strict=False)
        }

    def _measure(self, packed: tuple[int, int]) -> int:
        inputs, outputs = packed[0] * MARLIN_ROWS, packed[1] // 2
        start, stop, of = self._at
        if packed[1] % (2 * MARLIN_COLUMNS) or outputs % of:
            raise CheckpointError(
                f"{self.name}: qweight has shape {packed}, which is not {MARLIN_COLUMNS} outputs n times"
                + ("" if of == 1 else f", cut into {of} parts by the heads of its config.json"),
                REMEDY,
            )
        self._rows, self._outputs = slice(outputs // of * start, outputs // of * stop), outputs
        self.shape = (self._rows.stop - self._rows.start, inputs)
        return inputs

    def _wanted(self, groups: int) -> dict[str, tuple[int, int]]:
        return {"scales": (groups, self._outputs)}

    def _codes(self, rows: slice) -> NDArray[np.uint8]:
        start = self._rows.start
        return unpack_tiles(self._parts["qweight"].view(), slice(start + rows.start, start + rows.stop))

    def _scales(self) -> NDArray[np.float32]:
        return scales_in_order(self._floats("scales"))[:, self._rows].T


class Compressed(QuantisedMatrix):
    """compressed-tensors', pack-quantized."""

    packed = "weight_packed"
    scale = "weight_scale"

    def _measure(self, packed: tuple[int, int]) -> int:
        self.bits, width = self._said(*packed)
        self.shape = (packed[0], width)
        groups = max(1, self._part("weight_scale", 2, FLOATS).shape[1])
        self._schemes = self._fitting(groups)
        return width // groups

    def _fitting(self, groups: int) -> list[Scheme]:
        """The schemes that may be this matrix's: those that name it, or all, if their bits and scales are
        what its tensors have. Raises CheckpointError where none is."""
        schemes = [one for one in self.layout.schemes if self.module in one.names] or self.layout.schemes
        found = [one for one in schemes if one.fits(self.bits, self.shape[1], groups)]
        if not found:
            size = f"in groups of {self.shape[1] // groups}" if groups > 1 else "with a scale for each row"
            raise CheckpointError(
                f"{self.name} has {self.bits} bits {size}, but its quantization_config says "
                + " or ".join(map(str, schemes)),
                f"{OWN_CONFIG}, or download it anew",
            )
        return found

    def _symmetric(self) -> str:
        return "symmetric: true" if all(one.symmetric for one in self._schemes) else ""

    def _needed(self) -> frozenset[str]:
        # Of several schemes a matrix does not say which is its own: what counts for all is asked of it.
        needed = {"weight_zero_point": all(one.symmetric is False for one in self._schemes)}
        needed["weight_g_idx"] = all(one.scattered for one in self._schemes)
        return frozenset(last for last, one in needed.items() if one)

    def _said(self, rows: int, words: int) -> tuple[int, int]:
        """Bits and columns by ``weight_shape``: the last word of a row may not be full."""
        shape = self._part("weight_shape", 1, ("I64", "I32")).view()
        if shape.shape == (2,) and shape[0] == rows and 0 < shape[1] < 1 << 31:
            for bits in (self.bits,) if self.bits else (4, 8):
                if -(-int(shape[1]) * bits // 32) == words:
                    return bits, int(shape[1])
        said = shape[:4].tolist()
        asked = f" with num_bits {self.bits}" if self.bits else ""
        raise CheckpointError(
            f"{self.name}: weight_shape {said}{asked} does not fit its weight_packed of shape {rows, words}",
            f"{OWN_CONFIG}, or download it anew",
        )

    def _wanted(self, groups: int) -> dict[str, tuple[int, int]]:
        rows = self.shape[0]
        shapes = {"weight_scale": (rows, groups)}
        if "weight_zero_point" in self._parts:
            shapes["weight_zero_point"] = (-(-rows * self.bits // 32), groups)
        return shapes

    def _codes(self, rows: slice) -> NDArray[np.uint8]:
        return unpack_words(self._parts["weight_packed"].view()[rows], self.bits)[:, : self.shape[1]]

    def _zeros(self) -> NDArray[np.int32] | None:
        part = self._parts.get("weight_zero_point")
        if part is None:
            return None
        found = unpack_words(np.ascontiguousarray(part.view().T), self.bits)[:, : self.shape[0]]
        return found.T.astype(np.int32)


class Mlx(QuantisedMatrix):
    """MLX's, mode affine."""

    packed = "weight"

    @property
    def middle(self) -> int:
        """Of two bits that of ternary weights, whose codes are 0, 1 and 2."""
        return 1 if self.bits == 2 else super().middle

    def _measure(self, packed: tuple[int, int]) -> int:
        self.shape = (packed[0], packed[1] * 32 // self.bits)
        return self.shape[1]

    def _wanted(self, groups: int) -> dict[str, tuple[int, int]]:
        return {"scales": (self.shape[0], groups), "biases": (self.shape[0], groups)}

    def _codes(self, rows: slice) -> NDArray[np.uint8]:
        return unpack_words(self._parts["weight"].view()[rows], self.bits)

    def _offsets(self, scales: NDArray[np.float32], lower: int) -> NDArray[np.float32] | None:
        biases = self._floats("biases")
        if (biases == -self.middle * scales).all():
            return None
        return biases + np.float32(lower) * scales
