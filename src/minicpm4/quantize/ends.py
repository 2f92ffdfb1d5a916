"""What is stored quantised and was not asked to change, as a layout can hold it: kinds that GGUF alone has
are widened for others; embeddings and a head are kept where a layout holds them so, else floats that hold
every value."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from minicpm4.config import ModelConfig
from minicpm4.errors import CheckpointError, ConfigError
from minicpm4.formats.ggml_fit import own_types, same_in
from minicpm4.formats.ggml_types import GGML_TYPES
from minicpm4.formats.names import EMBED, HEAD
from minicpm4.formats.packing import exact_float, pack_from_float, unpack, widened
from minicpm4.formats.quant import PackedTensor, QuantSpec
from minicpm4.formats.quantised_config import check_writable, keeps_embeddings
from minicpm4.formats.quantised_write import QUANTISED, OutMatrix, quantised_sources
from minicpm4.quantize.parts import ENDS, Parts

__all__ = ["FittingEnds"]


@dataclass(slots=True, eq=False)
class FittingEnds:
    """``made`` for ``layout``; ``asked``: matrices whose format was asked for, which stay in it."""

    made: Parts
    layout: str
    asked: Collection[str] = ()

    @property
    def config(self) -> ModelConfig:
        return self.made.config

    @property
    def stems(self) -> list[str]:
        return self.made.stems

    def part(self, stem: str) -> dict[str, PackedTensor]:
        found = self.made.part(stem)
        if self.layout != "gguf":  # others have no place for GGUF's kinds
            found = {name: widened(tensor) for name, tensor in found.items()}
        if stem == ENDS:
            for name in (EMBED, HEAD):
                tensor = found.get(name)
                if tensor is None or name in self.asked or _held(self.layout, name, tensor):
                    continue
                values = unpack(tensor)
                found[name] = pack_from_float(values, QuantSpec(kind=exact_float(values)))
        return found


def _held(layout: str, name: str, tensor: PackedTensor) -> bool:
    """Whether ``layout`` holds the matrix as it is; folders of floats unpack all by themselves."""
    if not tensor.spec.row.group:
        return True
    if layout == "gguf":
        types = own_types(tensor.spec, tensor.shape[1], offsets=tensor.shifted)
        return any(same_in(tensor, GGML_TYPES[number]) is not None for number in types)
    if layout not in QUANTISED:
        return True
    if name == EMBED and not keeps_embeddings(layout):
        return False
    try:
        check_writable(layout, {name: tensor.spec}, {name: tensor.shape})
        quantised_sources(layout, [OutMatrix.of(name, tensor, lambda: tensor)])
    except (CheckpointError, ConfigError):
        return False
    return True
