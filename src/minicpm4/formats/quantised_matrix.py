"""One matrix of a folder that another tool quantised, read into the packed layout of ``formats/quant.py``:
what is the same for every method (``formats/quantised_methods.py``). No value changes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minicpm4.errors import CheckpointError, ConfigError
from minicpm4.formats.bf16 import bf16_to_f32
from minicpm4.formats.packing import SLICE
from minicpm4.formats.quant import PackedTensor, QuantSpec
from minicpm4.formats.rounding import in_half

__all__ = ["FLOATS", "OWN_CONFIG", "REMEDY", "Layout", "Parts", "QuantisedMatrix", "Scheme"]

Parts = Mapping[str, Any]
"""The tensors of a matrix by their last names, each a ``StoredTensor``."""
REMEDY = "use the original checkpoint, or a GGUF file of the model"
OWN_CONFIG = "use the config.json that was written with these weights"
_KINDS = {2: "int4", 4: "int4", 8: "int8"}
FLOATS = ("F16", "BF16", "F32")
_WORDS = ("I32", "U32")
_STEP = 64  # rows read at a time are a multiple of this: whole words and blocks of every method


@dataclass(frozen=True, kw_only=True, slots=True)
class Scheme:
    """What compressed-tensors says of some matrices, beside their tensors: ``bits``; ``group``: weights that
    share a scale (0: a row of them; None: not said); whether zero points are all at the middle (None: not
    said); whether groups are not neighbours. ``names``: those that are named, by name without ".weight"."""

    bits: int
    group: int | None
    symmetric: bool | None
    scattered: bool
    names: frozenset[str]

    def __str__(self) -> str:
        group = {None: "", 0: ", strategy channel"}.get(self.group, f", group_size {self.group}")
        return f"num_bits {self.bits}{group}"

    def fits(self, bits: int, columns: int, groups: int) -> bool:
        """Whether a matrix of so many columns may have codes and scales of so many bits and groups."""
        if bits != self.bits:
            return False
        if self.group is None:
            return True
        return groups * min(self.group, columns) == columns if self.group else groups == 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    """How one method lays its matrices out. ``form`` reads one. ``mark`` is the last name of the tensor that
    tells of a matrix, ``others`` are those that may stand beside it. ``needed``: those of them that must be
    there, as the configuration says that they count.

    ``bits`` of a code (0: each matrix its own, which its shape tells), ``group`` the group size (0: a row is
    one, or the shape of the scales tells); ``own``: both of single matrices, by name without ".weight".
    ``floats``: those that are said to be none. ``symmetric``: the words that promise zeros at the middle;
    empty: nothing does. ``schemes``: what is said of single matrices where their tensors say it, too.
    ``zero_first`` is what stored zeros lack. ``heads``: how many queries and keys have, where their matrices
    are one."""

    method: str
    form: type[QuantisedMatrix]
    mark: str
    others: frozenset[str]
    needed: frozenset[str] = frozenset()
    bits: int = 0
    group: int = 0
    own: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    floats: frozenset[str] = frozenset()
    symmetric: str = ""
    schemes: tuple[Scheme, ...] = ()
    zero_first: int = 0
    heads: tuple[int, int] = (1, 1)

    def matrices(self, name: str, parts: Parts) -> dict[str, QuantisedMatrix]:
        """The matrices that ``parts``, found under the name ``name``, hold. Raises CheckpointError where they
        do not fit together."""
        return self.form.read(self, name, parts)


class QuantisedMatrix:
    """One matrix: ``shape`` (out, in) and ``spec`` without reading it, ``load`` its weights.

    Where its groups are not neighbours (act-order) no kind with groups holds them: ``spec`` is float32, which
    holds every product of a scale and a code, and ``codes_spec`` what it is in the file.

    Methods say how large it is (``_measure``), which shapes its other tensors have (``_wanted``), what the
    codes of some rows are (``_codes``), and scales and zeros (``_scales``, ``_zeros``: (out, groups))."""

    packed = "qweight"
    scale = "scales"

    def __init__(self, layout: Layout, name: str, parts: Parts) -> None:
        self.layout, self.name, self._parts = layout, name, parts
        if self.module in layout.floats:
            raise CheckpointError(
                f"{name} has {layout.mark}, but config.json says that it is not quantised", OWN_CONFIG
            )
        self.bits, group = layout.own.get(self.module, (layout.bits, layout.group))
        self.shape: tuple[int, int] = (0, 0)
        found = self._measure(self._part(self.packed, 2, _WORDS).shape)
        self.codes_spec = self._spec(group or found)
        self.nbytes = sum(part.entry.nbytes for part in parts.values())
        self._check()
        self._groups = self._scattered()
        self.spec = self.codes_spec if self._groups is None else QuantSpec(kind="f32")

    @classmethod
    def read(cls, layout: Layout, name: str, parts: Parts) -> dict[str, QuantisedMatrix]:
        """See ``Layout.matrices``."""
        return {name: cls(layout, name, parts)}

    @property
    def module(self) -> str:
        """What configurations call it."""
        return self.name.removesuffix(".weight")

    @property
    def entry_type(self) -> str:
        """What files call the type of its codes, for reports."""
        return f"{self.layout.method}-int{self.bits}" + (" in act-order" if self.scattered else "")

    @property
    def scattered(self) -> bool:
        """Whether its groups are not neighbours."""
        return self._groups is not None

    @property
    def middle(self) -> int:
        """The code of weights that are 0, where nothing else is said."""
        return 1 << (self.bits - 1)

    @property
    def narrows(self) -> bool:
        """Whether the kind that it is read into has more bits than its codes have."""
        return self.codes_spec.row.bits > self.bits

    def load(self) -> PackedTensor:
        """Raises CheckpointError where a scale is not finite."""
        if self._groups is not None:
            return self._loaded_floats(self._groups)
        row, scales = self.spec.row, self._scales()
        # Numbers of int8 are its codes, so those of files are lowered, and offsets raised.
        lower = self.middle if row.zero == 0 else 0
        offsets = self._offsets(scales, lower)
        shift = row.zero - self.middle if offsets is None else -lower
        codes = np.empty((self.shape[0], row.width(self.shape[1])), row.codes)
        for part in self._slices():
            found = self._codes(part).astype(np.int16)
            found += shift
            codes[part] = row.pack(np.ascontiguousarray(found.astype(row.codes)))
        small, exact = in_half(scales)
        return PackedTensor(
            spec=self.spec,
            shape=self.shape,
            codes=codes,
            scales=np.ascontiguousarray(small if exact else scales),
            offsets=None if offsets is None else np.ascontiguousarray(offsets),
        )

    def _loaded_floats(self, groups: NDArray[np.intp]) -> PackedTensor:
        """Its weights in float32, where column i is of group ``groups[i]``."""
        scales = self._scales()
        zeros = self._checked_zeros()
        codes = np.empty(self.shape, np.float32)
        for part in self._slices():
            found = self._codes(part).astype(np.int16)
            found -= self.middle if zeros is None else zeros[part][:, groups].astype(np.int16)
            np.multiply(found, scales[part][:, groups], out=codes[part])
        return PackedTensor(spec=self.spec, shape=self.shape, codes=codes)

    def release(self) -> None:
        """Let the system drop its mapped pages."""
        for part in self._parts.values():
            part.release()

    def _measure(self, packed: tuple[int, int]) -> int:
        """Set the shape, and the bits where they are not known, by the shape of the codes. Returns the group
        size by the shape of the scales, or a row's."""
        raise NotImplementedError

    def _wanted(self, groups: int) -> dict[str, tuple[int, int]]:
        """Shapes of the tensors beside the codes; of those that may be absent only if they are there."""
        raise NotImplementedError

    def _codes(self, rows: slice) -> NDArray[np.uint8]:
        """Codes (rows, in) as they are in the file."""
        raise NotImplementedError

    def _zeros(self) -> NDArray[np.int32] | None:
        """Codes that stand for 0; None: none are stored."""
        return None

    def _symmetric(self) -> str:
        """The words of the configuration that promise zeros at the middle; empty: nothing does."""
        return self.layout.symmetric

    def _needed(self) -> frozenset[str]:
        """Tensors that the configuration asks for."""
        return self.layout.needed

    def _checked_zeros(self) -> NDArray[np.int32] | None:
        """``_zeros``. Raises CheckpointError where they are not what the configuration promises."""
        zeros, said = self._zeros(), self._symmetric()
        if zeros is None or not said or (zeros == self.middle).all():
            return zeros
        odd = int(zeros[zeros != self.middle][0])
        raise CheckpointError(
            f"{self.name} has other zero points than {self.middle}, such as {odd}, which its "
            f"quantization_config rules out ({said})",
            f"{OWN_CONFIG}, or the original checkpoint",
        )

    def _scales(self) -> NDArray[np.float32]:
        return self._floats(self.scale)

    def _offsets(self, scales: NDArray[np.float32], lower: int) -> NDArray[np.float32] | None:
        """What is added to scale * (code - lower); None: zeros are all at the middle."""
        zeros = self._checked_zeros()
        if zeros is None or (zeros == self.middle).all():
            return None
        return -(zeros - lower).astype(np.float32) * scales

    def _slices(self) -> Iterator[slice]:
        rows, columns = self.shape
        step = max(1, SLICE // columns // _STEP) * _STEP
        for start in range(0, rows, step):
            yield slice(start, min(start + step, rows))

    def _spec(self, group: int) -> QuantSpec:
        try:
            spec = QuantSpec(kind=_KINDS[self.bits], group_size=group)
        except ConfigError as error:
            raise CheckpointError(f"{self.name}: {error.condition}", REMEDY) from error
        if not spec.fits(self.shape[1]):
            raise CheckpointError(
                f"{self.name}: {self.shape[1]} columns are not whole groups of {group}, in "
                f"{self.layout.method} of {self.bits} bits",
                f"{OWN_CONFIG}, or the original checkpoint",
            )
        return spec

    def _part(self, last: str, dims: int, types: tuple[str, ...]) -> Any:
        part = self._parts.get(last)
        if part is None:
            raise CheckpointError(f"{self.name} has {self.layout.mark} but no {last}", "download it anew")
        if len(part.shape) != dims or part.entry.dtype not in types:
            raise CheckpointError(
                f"{self.name}: {last} is {part.entry.dtype} of shape {part.shape}"
                f", which {self.layout.method} has not",
                REMEDY,
            )
        return part

    def _floats(self, last: str) -> NDArray[np.float32]:
        """Values of scales, or of what is added."""
        part = self._parts[last]
        found = part.view()
        values = bf16_to_f32(found) if part.entry.dtype == "BF16" else found.astype(np.float32)
        # Times the largest code they are weights, which float32 must hold.
        if not (np.abs(values) < np.finfo(np.float32).max / (2 << self.bits)).all():
            what = "a scale" if last == self.scale else f"one of its {last}"
            raise CheckpointError(
                f"{self.name}: {what} is not finite, or too large", f"download it anew, or {REMEDY}"
            )
        return values

    def _check(self) -> None:
        """Raise CheckpointError unless scales and zeros have the shapes that codes ask for."""
        columns = self.shape[1]
        groups = columns // self.codes_spec.group_size
        for last, shape in self._wanted(groups).items():
            floats = "scale" in last or last == "biases"
            part = self._part(last, 2, FLOATS if floats else _WORDS)
            if part.shape != shape:
                raise CheckpointError(
                    f"{self.name}: {last} has shape {part.shape}, expected {shape} for "
                    f"{self.layout.method} of {self.bits} bits in groups of {self.codes_spec.group_size}",
                    f"{OWN_CONFIG}, or download it anew",
                )
        for last in sorted(self._needed()):
            if last not in self._parts and (last != "g_idx" or groups > 1):
                raise CheckpointError(
                    f"{self.name} has no {last}, which its quantization_config asks for", "download it anew"
                )
        for last in ("g_idx", "weight_g_idx"):
            if last in self._parts and self._part(last, 1, ("I32", "I64")).shape != (columns,):
                raise CheckpointError(f"{self.name}: {last} has shape {self._parts[last].shape}")

    def _scattered(self) -> NDArray[np.intp] | None:
        """The group of each column, where groups are not neighbours; None: they are. Raises
        CheckpointError."""
        size = self.codes_spec.group_size
        usual, groups = np.arange(self.shape[1]) // size, self.shape[1] // size
        for last in ("g_idx", "weight_g_idx"):
            if last not in self._parts:
                continue
            found = self._parts[last].view()
            if (found == usual).all() or (last == "weight_g_idx" and (found == -1).all()):
                continue
            if ((found < 0) | (found >= groups)).any():
                raise CheckpointError(
                    f"{self.name}: {last} names groups from {found.min()} to {found.max()}"
                    f", there are {groups}, numbered from 0",
                    "download it anew",
                )
            return found.astype(np.intp)
        return None
