"""What is stored quantised and was not asked to change, as a layout can hold it: kinds that GGUF alone has
are widened for others; what a layout has no place for becomes floats that hold every value."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from functools import partial

from minicpm4.config import ModelConfig
from minicpm4.errors import CheckpointError, ConfigError
from minicpm4.formats.ggml_fit import own_type, own_types
from minicpm4.formats.ggml_types import GGML_TYPES
from minicpm4.formats.names import EMBED, HEAD
from minicpm4.formats.packing import smallest_floats, unpack_rows, widened
from minicpm4.formats.quant import PackedTensor, QuantSpec, packed_nbytes
from minicpm4.formats.quantised_config import check_writable, keeps_unasked
from minicpm4.formats.quantised_write import QUANTISED, OutMatrix, quantised_sources
from minicpm4.quantize.parts import Parts

__all__ = ["Fitting", "fitted", "format_nbytes", "type_nbytes", "written_nbytes"]

_SHAPE = 16  # bytes of compressed-tensors' weight_shape


@dataclass(slots=True, eq=False)
class Fitting:
    """``made`` for ``layout``; ``free``: matrices whose format nobody asked for, which may become floats."""

    made: Parts
    layout: str
    free: Collection[str] = (EMBED, HEAD)

    @property
    def config(self) -> ModelConfig:
        return self.made.config

    @property
    def stems(self) -> list[str]:
        return self.made.stems

    def part(self, stem: str) -> dict[str, PackedTensor]:
        return {
            name: fitted(self.layout, name, tensor, free=name in self.free)
            for name, tensor in self.made.part(stem).items()
        }


def fitted(layout: str, name: str, tensor: PackedTensor, *, free: bool = True) -> PackedTensor:
    """The matrix ``name`` as it is written in ``layout``; ``free``: it may become floats."""
    if layout != "gguf":  # others have no place for GGUF's kinds
        tensor = widened(tensor)
    if not free or _held(layout, name, tensor):
        return tensor
    return smallest_floats(tensor.shape, partial(unpack_rows, tensor))


def written_nbytes(layout: str, name: str, tensor: PackedTensor) -> int:
    """Bytes that the matrix ``name``, whose format nobody asked for, takes in ``layout``; in folders of
    floats those of its format."""
    found = fitted(layout, name, tensor)
    if layout == "gguf":
        number = own_type(found)
        assert number is not None
        return type_nbytes(found.shape, number)
    if layout not in QUANTISED or not found.spec.row.group:
        return found.nbytes
    sources = quantised_sources(layout, [OutMatrix.of(name, found, lambda: found)])
    return sum(source.nbytes for source in sources.values())


def format_nbytes(layout: str, shape: tuple[int, int], spec: QuantSpec) -> int:
    """Bytes of a matrix of ``shape`` that is rounded to ``spec`` in ``layout``; MLX has an offset beside each
    scale, GGUF groups of its own."""
    own = own_types(spec, shape[1]) if layout == "gguf" else []
    same = [n for n in own if GGML_TYPES[n].spec.kind == spec.kind and not GGML_TYPES[n].offsets]
    if own:
        return type_nbytes(shape, (same or own)[0])
    shape_nbytes = _SHAPE if layout == "compressed-tensors" and spec.row.group else 0
    return packed_nbytes(shape, spec, offsets=layout == "mlx") + shape_nbytes


def type_nbytes(shape: tuple[int, int], number: int) -> int:
    """Bytes of a matrix of ``shape`` in a type of GGUF."""
    kind = GGML_TYPES[number]
    return shape[0] * shape[1] // kind.block * kind.nbytes


def _held(layout: str, name: str, tensor: PackedTensor) -> bool:
    """Whether ``layout`` holds the matrix as it is; folders of floats unpack all by themselves."""
    if not tensor.spec.row.group:
        return True
    if layout == "gguf":
        return own_type(tensor) is not None
    if layout not in QUANTISED:
        return True
    if not keeps_unasked(layout, name):
        return False
    try:
        check_writable(layout, {name: tensor.spec}, {name: tensor.shape})
        quantised_sources(layout, [OutMatrix.of(name, tensor, lambda: tensor)])
    except (CheckpointError, ConfigError):
        return False
    return True
