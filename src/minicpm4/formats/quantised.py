"""Weights that other tools quantised, in Hugging Face folders: GPTQ, AWQ and compressed-tensors.

Each matrix is several tensors there; here it is one, in int4 or int8 as ``formats/quant.py`` has them, with
no value changed. What would change the mathematics (groups that are not neighbours, activations that are
rounded) is refused by name. Layouts, with b bits a code, k = 32 / b codes a word, g groups:

    gptq    qweight (in / k, out), qzeros (g, out / k), scales (g, out), g_idx (in); ``checkpoint_format``
            gptq stores zeros less 1, gptq_v2 zeros
    awq     qweight (in, out / k), qzeros (g, out / k), scales (g, out); columns of a word in AWQ_ORDER
    compressed-tensors
            weight_packed (out, in / k), weight_scale (out, g), weight_zero_point (out / k, g), weight_shape;
            codes and zeros have 2**(b - 1) added

A weight is scale * (code - zero).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minicpm4.errors import CheckpointError, ConfigError
from minicpm4.formats.bf16 import bf16_to_f32
from minicpm4.formats.kinds import KINDS
from minicpm4.formats.quant import PackedTensor, QuantSpec
from minicpm4.formats.rounding import in_half
from minicpm4.formats.words import AWQ_ORDER, unpack_words

__all__ = ["Layout", "QuantisedMatrix", "layout_of"]

Parts = Mapping[str, Any]
"""The tensors of a matrix by their last names, each a ``StoredTensor``."""
_KINDS = {4: "int4", 8: "int8"}
_FLOATS = ("F16", "BF16", "F32")
_REMEDY = "use the original checkpoint, or a GGUF file of the model"


@dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    """How one method lays a matrix out. ``packed`` is the last name of the tensor of its codes, ``others``
    are those that may stand beside it; ``bits`` of a code (0: each matrix its own, which its shape tells),
    ``group`` the group size (0: a row is one, or, of compressed-tensors, the shape of the scales tells).
    ``zero_first`` is what stored zeros lack. ``needed``: those of ``others`` that must be there, as the
    configuration says that they count."""

    method: str
    bits: int
    packed: str
    others: frozenset[str]
    group: int = 0
    zero_first: int = 0
    needed: frozenset[str] = frozenset()

    def matrix(self, name: str, parts: Parts) -> QuantisedMatrix:
        """The matrix ``name`` of ``parts``. Raises CheckpointError where they do not fit together."""
        return QuantisedMatrix(self, name, parts)


def layout_of(config: Mapping[str, Any]) -> Layout:
    """The layout that ``quantization_config`` describes. Raises CheckpointError for one that cannot be
    read."""
    method = str(config.get("quant_method", "unknown")).lower()
    if method not in _READERS:
        raise CheckpointError(f"weights quantised by {method:.40} cannot be read yet", _REMEDY)
    return _READERS[method](config)


def _gptq(config: Mapping[str, Any]) -> Layout:
    version = _version(config, "gptq", "checkpoint_format", "format")
    if version not in ("gptq", "gptq_v2") or config.get("is_marlin_format"):
        version = version if version not in ("gptq", "gptq_v2") else "marlin"
        raise CheckpointError(f"GPTQ weights in format {version:.40} cannot be read", _REMEDY)
    return Layout(
        method="gptq",
        bits=_bits(config.get("bits")),
        group=_group(config.get("group_size")),
        packed="qweight",
        others=frozenset(("qzeros", "scales", "g_idx")),
        zero_first=1 if version == "gptq" else 0,
        needed=frozenset(("g_idx",) if config.get("desc_act") else ()),
    )


def _awq(config: Mapping[str, Any]) -> Layout:
    version = _version(config, "gemm", "version", "format")
    if version != "gemm":
        raise CheckpointError(
            f"AWQ weights in version {version:.40} cannot be read", "use one in version gemm"
        )
    bits = _bits(config.get("bits", config.get("w_bit")))
    if bits != 4:
        raise CheckpointError(f"AWQ weights of {bits} bits are unknown", _REMEDY)
    return Layout(
        method="awq",
        bits=bits,
        group=_group(config.get("group_size", config.get("q_group_size"))),
        packed="qweight",
        others=frozenset(("qzeros", "scales")),
    )


def _compressed(config: Mapping[str, Any]) -> Layout:
    kind = config.get("format")
    if kind != "pack-quantized":
        raise CheckpointError(f"compressed-tensors in format {kind!s:.40} cannot be read yet", _REMEDY)
    groups = config.get("config_groups")
    schemes = list(groups.values()) if isinstance(groups, dict) else []
    weights = [
        one["weights"] for one in schemes if isinstance(one, dict) and isinstance(one.get("weights"), dict)
    ]
    if not schemes or len(weights) != len(schemes):
        raise CheckpointError(
            "compressed-tensors without config_groups that say how weights are held", _REMEDY
        )
    for name in ("input_activations", "output_activations"):
        if any(one.get(name) for one in schemes):
            raise CheckpointError(f"compressed-tensors whose {name} are rounded cannot be read yet", _REMEDY)
    for one in weights:
        _strategy(one)
    bits = {_bits(one.get("num_bits")) for one in weights}
    if any(one.get("type", "int") != "int" for one in weights):
        raise CheckpointError("compressed-tensors whose weights are no integers cannot be read yet", _REMEDY)
    if config.get("transform_config"):
        raise CheckpointError(
            "compressed-tensors with transform_config (states are turned at run time) cannot be read yet",
            _REMEDY,
        )
    # Of several schemes a matrix does not say which is its own: what counts for all is asked of each.
    needed = {"weight_zero_point": all(one.get("symmetric") is False for one in weights)}
    needed["weight_g_idx"] = all(one.get("actorder") in (True, "group") for one in weights)
    return Layout(
        method="compressed-tensors",
        bits=bits.pop() if len(bits) == 1 else 0,
        packed="weight_packed",
        others=frozenset(("weight_scale", "weight_zero_point", "weight_shape", "weight_g_idx")),
        needed=frozenset(last for last, one in needed.items() if one),
    )


_READERS: dict[str, Callable[[Mapping[str, Any]], Layout]] = {
    "gptq": _gptq,
    "awq": _awq,
    "compressed-tensors": _compressed,
}


def _version(config: Mapping[str, Any], usual: str, *names: str) -> str:
    """The first of the fields ``names`` that is given, lower case."""
    return str(next((one for name in names if (one := config.get(name)) is not None), usual)).lower()


def _strategy(weights: Mapping[str, Any]) -> None:
    strategy = weights.get("strategy", "group")
    if strategy not in ("group", "channel"):
        raise CheckpointError(
            f"compressed-tensors with scales by {strategy!s:.40} cannot be read yet", _REMEDY
        )


def _bits(found: Any) -> int:
    if not isinstance(found, int) or found not in _KINDS:
        raise CheckpointError(f"quantised weights of {found!r:.40} bits cannot be read", "use 4 or 8 bits")
    return found


def _group(found: Any) -> int:
    if not isinstance(found, int) or isinstance(found, bool) or found < -1 or found > 1 << 20:
        raise CheckpointError(f"quantised weights with group_size {found!r:.40} cannot be read", _REMEDY)
    return max(found, 0)


class QuantisedMatrix:
    """One matrix of a folder: ``shape`` (out, in) and ``spec`` without reading it, ``load`` its weights."""

    def __init__(self, layout: Layout, name: str, parts: Parts) -> None:
        self.layout, self.name, self._parts = layout, name, parts
        packed = self._part(layout.packed, 2, ("I32",))
        rows, columns = packed.shape
        self.bits, group = layout.bits, layout.group
        if layout.method == "gptq":
            self.shape = (columns, rows * 32 // self.bits)
        elif layout.method == "awq":
            self.shape = (columns * 32 // self.bits, rows)
        else:
            self.bits, width = self._said(rows, columns)
            self.shape = (rows, width)
            group = width // max(1, self._part("weight_scale", 2, _FLOATS).shape[1])
        self.spec = self._spec(group or self.shape[1])
        self.nbytes = sum(part.entry.nbytes for part in parts.values())
        self._check()

    @property
    def entry_type(self) -> str:
        """What files call the type of its codes, for reports."""
        return f"{self.layout.method}-int{self.bits}"

    def load(self) -> PackedTensor:
        """Raises CheckpointError where groups are not neighbours, or a scale is not finite."""
        layout, zero = self.layout, 1 << (self.bits - 1)
        words = self._parts[layout.packed].view()
        if layout.method == "gptq":
            codes = unpack_words(np.ascontiguousarray(words.T), self.bits)
        elif layout.method == "awq":
            codes = _columns(words).T
        else:
            codes = unpack_words(words, self.bits)[:, : self.shape[1]]
        self._check_order()
        scales, zeros = self._scales(), self._zeros()
        plain = bool((zeros == zero).all())
        row = KINDS[self.spec.kind]
        if self.spec.kind == "int8":
            # Numbers of int8 are its codes: 128 less, as offsets must then be more.
            codes, zeros = (codes.astype(np.int16) - zero).astype(np.int8), zeros - zero
        offsets = None if plain else (-zeros.astype(np.float32) * scales)
        small, exact = in_half(scales)
        return PackedTensor(
            spec=self.spec,
            shape=self.shape,
            codes=np.ascontiguousarray(row.pack(np.ascontiguousarray(codes))),
            scales=np.ascontiguousarray(small if exact else scales),
            offsets=None if offsets is None else np.ascontiguousarray(offsets),
        )

    def release(self) -> None:
        """Let the system drop its mapped pages."""
        for part in self._parts.values():
            part.release()

    def _spec(self, group: int) -> QuantSpec:
        try:
            spec = QuantSpec(kind=_KINDS[self.bits], group_size=group)
        except ConfigError as error:
            raise CheckpointError(f"{self.name}: {error.condition}", _REMEDY) from error
        if not spec.fits(self.shape[1]):
            raise CheckpointError(
                f"{self.name}: {self.shape[1]} columns are not whole groups of {group}", _REMEDY
            )
        return spec

    def _part(self, last: str, dims: int, types: tuple[str, ...]) -> Any:
        part = self._parts.get(last)
        if part is None:
            raise CheckpointError(f"{self.name} has {self.layout.packed} but no {last}", "download it anew")
        if len(part.shape) != dims or part.entry.dtype not in types:
            raise CheckpointError(
                f"{self.name}: {last} is {part.entry.dtype} of shape {part.shape}"
                f", which {self.layout.method} has not"
            )
        return part

    def _said(self, rows: int, words: int) -> tuple[int, int]:
        """Bits and columns by ``weight_shape``: the last word of a row may not be full."""
        shape = self._part("weight_shape", 1, ("I64", "I32")).view()
        if shape.shape == (2,) and shape[0] == rows and 0 < shape[1] < 1 << 31:
            for bits in (self.bits,) if self.bits else _KINDS:
                if -(-int(shape[1]) * bits // 32) == words:
                    return bits, int(shape[1])
        said = shape[:4].tolist()
        raise CheckpointError(f"{self.name}: weight_shape {said} does not fit its weight_packed")

    def _check(self) -> None:
        """Raise CheckpointError unless scales and zeros have the shapes that codes ask for."""
        (rows, columns), each = self.shape, 32 // self.bits
        groups, words = columns // self.spec.group_size, -(-rows // each)
        if self.layout.method == "compressed-tensors":
            wanted = {"weight_scale": (rows, groups)}
            if "weight_zero_point" in self._parts:
                wanted["weight_zero_point"] = (words, groups)
        else:
            wanted = {"scales": (groups, rows), "qzeros": (groups, words)}
        for last, shape in wanted.items():
            part = self._part(last, 2, _FLOATS if "scale" in last else ("I32",))
            if part.shape != shape:
                raise CheckpointError(f"{self.name}: {last} has shape {part.shape}, expected {shape}")
        for last in sorted(self.layout.needed):
            if last not in self._parts and (last != "g_idx" or groups > 1):
                raise CheckpointError(
                    f"{self.name} has no {last}, which its quantization_config asks for", "download it anew"
                )
        for last in ("g_idx", "weight_g_idx"):
            if last in self._parts and self._part(last, 1, ("I32", "I64")).shape != (columns,):
                raise CheckpointError(f"{self.name}: {last} has shape {self._parts[last].shape}")

    def _check_order(self) -> None:
        for last in ("g_idx", "weight_g_idx"):
            if last not in self._parts:
                continue
            found = self._parts[last].view()
            if last == "weight_g_idx" and (found == -1).all():
                continue
            if (found != np.arange(self.shape[1]) // self.spec.group_size).any():
                raise CheckpointError(
                    f"{self.name}: its groups are not neighbours ({last}: desc_act, or act-order)",
                    "use a checkpoint without act-order, or the original",
                )

    def _scales(self) -> NDArray[np.float32]:
        """(out, groups)."""
        ours = self.layout.method == "compressed-tensors"
        part = self._parts["weight_scale" if ours else "scales"]
        found = part.view()
        values = bf16_to_f32(found) if part.entry.dtype == "BF16" else found.astype(np.float32)
        # Times the largest code they are weights, which float32 must hold.
        if not (np.abs(values) < np.finfo(np.float32).max / (1 << self.bits)).all():
            raise CheckpointError(f"{self.name}: a scale is not finite, or too large")
        return values if ours else values.T

    def _zeros(self) -> NDArray[np.int32]:
        """(out, groups), as codes."""
        layout, (rows, columns) = self.layout, self.shape
        if layout.method == "compressed-tensors":
            part = self._parts.get("weight_zero_point")
            if part is None:
                return np.full((rows, columns // self.spec.group_size), 1 << (self.bits - 1), np.int32)
            return unpack_words(np.ascontiguousarray(part.view().T), self.bits)[:, :rows].T.astype(np.int32)
        words = self._parts["qzeros"].view()
        found = _columns(words) if layout.method == "awq" else unpack_words(words, self.bits)
        # As written by its own tools, the sum wraps: 15 and one more is 0.
        mask = (1 << self.bits) - 1
        return ((found[:, :rows].astype(np.int32) + layout.zero_first) & mask).T


def _columns(words: NDArray) -> NDArray[np.uint8]:
    """Codes (rows, columns) of AWQ's words."""
    found = unpack_words(words, 4).reshape(len(words), -1, len(AWQ_ORDER))
    back = np.argsort(AWQ_ORDER)
    return np.ascontiguousarray(found[:, :, back]).reshape(len(words), -1)
