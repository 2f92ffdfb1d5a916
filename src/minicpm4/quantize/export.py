"""A model, made small or as it is, written as a Hugging Face folder, read again and compared."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from minicpm4.errors import CheckpointError, ConfigError
from minicpm4.formats import open_checkpoint
from minicpm4.formats.ggml_fit import same_values
from minicpm4.formats.hf_write import begin_folder, check_finite, end_folder, hf_config, with_end_ids
from minicpm4.formats.kinds import KINDS, float_kinds
from minicpm4.formats.names import EMBED
from minicpm4.formats.packing import unpack
from minicpm4.formats.quant import PackedTensor, QuantSpec
from minicpm4.formats.quantised_config import check_writable, quantisation
from minicpm4.formats.quantised_write import QUANTISED, OutMatrix, quantised_sources, second_gptq
from minicpm4.formats.safetensors_write import write_set
from minicpm4.formats.tensor_source import TensorSource
from minicpm4.model.stored_prefix import StoredPrefix, write_stored
from minicpm4.quantize.parts import ENDS, OnePart, Parts, is_vector, tell_layers
from minicpm4.quantize.walk import as_floats
from minicpm4.text.model_text import ModelText

__all__ = [
    "FOLDERS",
    "KEEP_PREFIX",
    "LAYOUTS",
    "Written",
    "check_again",
    "check_layout",
    "formats",
    "write_model",
]

FOLDERS = (*QUANTISED, "hf", "llama")
"""How a folder may hold the weights: hf are floats, as they were rounded, llama the same without muP's
scales."""
LAYOUTS = (*FOLDERS, "gguf")
KEEP_PREFIX = tuple(name for name in FOLDERS if name not in ("llama", "marlin"))
"""Those in which a stored prefix has a place: folders that this package is to read."""
_STEMS = {"marlin": "model_gptq"}  # what CPM.cu calls its files


@dataclass(frozen=True, kw_only=True, slots=True)
class Written:
    """What was written: bytes of all tensors, and of matrices the weights in each format."""

    nbytes: int
    weights: int
    matrix_nbytes: int

    @property
    def bits(self) -> float:
        """Bits a weight of all matrices, scales included."""
        return 8 * self.matrix_nbytes / max(1, self.weights)


def check_layout(
    layout: str, specs: Mapping[str, QuantSpec | None], shapes: Mapping[str, tuple[int, ...]]
) -> None:
    """Raise ConfigError unless ``layout`` has a place for every matrix in its format, in a model with tensors
    of ``shapes``."""
    if layout not in QUANTISED:
        return
    found = {name: spec for name, spec in specs.items() if spec is not None and name in shapes}
    check_writable(layout, found, shapes)
    if not found:
        raise ConfigError(
            f"{layout} with no matrix that is quantised", "use --to hf, or round: --weights int4"
        )
    quantisation(layout, found, [name for name, spec in specs.items() if spec is None and name in shapes])


def formats(made: Parts) -> dict[str, QuantSpec | None]:
    """The format of every matrix, None where it is of floats. Raises CheckpointError."""
    found: dict[str, QuantSpec | None] = {}
    for stem in made.stems:
        for name, tensor in made.part(stem).items():
            if not is_vector(name):
                found[name] = tensor.spec if tensor.spec.row.group else None
        del tensor  # before the next part is made
    return found


def write_model(
    made: Parts, folder: Path, layout: str, text: ModelText | None, stored: StoredPrefix | None = None
) -> Written:
    """Write ``made`` into ``folder``, with the files of its ``text`` and its stored prefix. Raises
    CheckpointError, ConfigError."""
    parts = OnePart(made)
    sources: dict[str, TensorSource] = {}
    specs: dict[str, QuantSpec] = {}
    plain, shifted, weights, matrix_nbytes = [], [], 0, 0
    for stem in made.stems:
        packed: list[OutMatrix] = []
        for name, tensor in made.part(stem).items():
            load = partial(parts.tensor, stem, name)
            vector = is_vector(name)
            if not vector:
                weights += tensor.shape[0] * tensor.shape[1]
            if layout in QUANTISED and tensor.spec.row.group:
                specs[name] = tensor.spec
                shifted += [name] if tensor.shifted else []
                packed.append(OutMatrix.of(name, tensor, load))
                continue
            sources[name] = _floats(tensor, vector, load)
            if not vector:
                plain.append(name)
                matrix_nbytes += sources[name].nbytes
        del tensor  # before the next part is made
        found = quantised_sources(layout, packed) if packed else {}
        matrix_nbytes += sum(source.nbytes for source in found.values())
        sources |= found
    beside, ends = ({}, ()) if text is None else (text.files(), text.end_ids)
    config = with_end_ids(made.config, ends)
    content = hf_config(config, _dtype(made, layout, sources))
    if specs:
        said = quantisation(layout, specs, plain, shifted)
        second = (
            second_gptq(sources, next(iter(specs.values())).row.bits)
            if layout == "gptq" and shifted
            else None
        )
        if second is not None:
            sources = second
            said["quantization_config"]["checkpoint_format"] = "gptq_v2"
        content |= said
    try:
        begin_folder(folder, beside)
        write_set(folder, _STEMS.get(layout, "model"), sources, check_finite)
        if stored is not None:
            write_stored(folder, stored, made.config)
        end_folder(folder, content)
    except OSError as error:
        raise CheckpointError(
            f"cannot write {folder}: {error.strerror or error}", "check the place and its free space"
        ) from error
    total = sum(source.nbytes for source in sources.values())
    return Written(nbytes=total, weights=weights, matrix_nbytes=matrix_nbytes)


def check_again(made: Parts, folder: Path, progress: Callable[[int, int], None] | None = None) -> None:
    """Open what was written and compare every tensor with what was rounded, value for value. Raises
    CheckpointError that names the first that differs."""
    checkpoint = open_checkpoint(folder)
    for stem in made.stems:
        for name, tensor in made.part(stem).items():
            if is_vector(name):
                found = as_floats(checkpoint.load_vector(name)[None])
            else:
                found = checkpoint.load(name)
            if found.shape != tensor.shape or not same_values(found, tensor):
                raise CheckpointError(
                    f"{name} as written to {folder} is not what it was rounded to",
                    "nothing is kept of it; try another layout (--to), and tell us which model that was",
                )
            checkpoint.release(name)
        del tensor, found  # before the next part is made
        tell_layers(made.config, stem, progress)


def _dtype(made: Parts, layout: str, sources: Mapping[str, TensorSource]) -> str:
    """What other readers make of floats: the type of the embeddings, of a folder without codes the widest,
    which changes no matrix."""
    if layout in QUANTISED:
        spec = made.part(ENDS)[EMBED].spec
        return KINDS["f32" if spec.row.group else spec.kind].dtype
    types = {source.dtype for source in sources.values() if len(source.shape) == 2}
    kinds = [row for row in float_kinds().values() if row.file in types]
    return kinds[0].dtype if len(kinds) == 1 else KINDS["f32"].dtype


def _floats(tensor: PackedTensor, vector: bool, load: Callable[[], PackedTensor]) -> TensorSource:
    """Floats as they are, rounded ones in float32, which holds them exactly."""
    row = KINDS["f32"] if tensor.spec.row.group else tensor.spec.row

    def make() -> np.ndarray:
        found = load()
        values = unpack(found) if found.spec.row.group else found.codes
        return np.ascontiguousarray(values[0] if vector else values)

    return TensorSource(shape=tensor.shape[1:] if vector else tensor.shape, dtype=row.file, make=make)
