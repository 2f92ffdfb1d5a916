"""Where a conversion made a model larger, and what avoids that."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence

from minicpm4.config import ModelConfig
from minicpm4.config.strict import counted
from minicpm4.formats.checkpoint import Checkpoint, TensorInfo
from minicpm4.formats.kinds import float_kinds
from minicpm4.formats.names import EMBED, HEAD, expected_tensors, pattern_of
from minicpm4.formats.quant import QuantSpec, packed_nbytes
from minicpm4.formats.quantised_config import keeps_unasked
from minicpm4.formats.quantised_write import QUANTISED
from minicpm4.machine import human
from minicpm4.quantize.ends import fitted

__all__ = ["expected", "growth", "may_grow", "stored_nbytes"]

Tensors = Mapping[str, TensorInfo]
Specs = Mapping[str, QuantSpec | None]
FLOATS = [row.file for row in float_kinds().values()]


def stored_nbytes(tensors: Tensors) -> int:
    """Bytes of all tensors as they are stored."""
    return sum(info.nbytes for info in tensors.values())


def expected(
    source: Checkpoint, config: ModelConfig, specs: Specs, layout: str, *, rotated: bool = False
) -> dict[str, TensorInfo]:
    """About what will be written of a model with ``config`` whose matrices become ``specs`` (None: as they
    are stored, or, where they are ``rotated``, floats). What a matrix of layers that stays as it is stored
    takes is seen by the first of its name and type; floats that hold embeddings and a head that a layout has
    no place for are taken for float32."""
    old = source.tensors
    found: dict[str, TensorInfo] = {}
    seen: dict[tuple[str, str], QuantSpec] = {}
    for name, shape in expected_tensors(config).items():
        end = name in (EMBED, HEAD)
        info, spec = old.get(name, old[EMBED] if rotated and end else None), specs.get(name)
        if len(shape) == 2 and spec is None and info is not None:
            if not info.spec.row.group:
                spec = info.spec
            elif end or rotated:
                spec = info.spec if keeps_unasked(layout, name) and not rotated else None
            else:
                alike = (pattern_of([name]), info.dtype)
                if alike not in seen:
                    seen[alike] = fitted(layout, name, source.load(name)).spec
                    source.release(name)
                spec = seen[alike]
        if spec is None or (spec.row.group and layout in ("hf", "llama")):
            spec = QuantSpec(kind="f32")
        both = (shape[0], shape[1]) if len(shape) == 2 else (1, shape[0])
        size = packed_nbytes(both, spec)
        found[name] = TensorInfo(
            shape=shape, dtype=spec.row.file or str(spec), nbytes=size, spec=spec, loaded_nbytes=size
        )
    return found


def may_grow(old: Tensors, config: ModelConfig, bits: float) -> list[str]:
    """What to tell, before it is made, of a model that may take more than its source with so many ``bits`` a
    weight."""
    weights = sum(shape[0] * shape[1] for shape in expected_tensors(config).values() if len(shape) == 2)
    before, most = stored_nbytes(old), int(bits * weights / 8)
    if not _grew(before, most):
        return []
    stored = before * 8 / weights
    return [
        f"the result may be larger than its source: {human(before)} may become {human(most)}, since --bits "
        f"{bits:g} are more than the {stored:.2f} that it takes now"
    ]


def growth(
    old: Tensors, new: Tensors, layout: str, *, rotated: bool = False, ahead: bool = False
) -> list[str]:
    """What to tell of a model that takes more than its source: the matrices that do, and the options that
    avoid it. ``ahead``: it is not made yet, and ``new`` what is expected. Empty: it takes no more."""
    before, after = stored_nbytes(old), stored_nbytes(new)
    if not _grew(before, after):
        return []
    verb, became = ("will be", "will become about") if ahead else ("is", "became")
    kept = _kept_in(old)
    told = [f"the result {verb} larger than its source: {human(before)} {became} {human(after)}"]
    matrices = [name for name, info in new.items() if len(info.shape) == 2]
    layers = [name for name in matrices if name not in (EMBED, HEAD)]
    for name in (EMBED, HEAD):
        if name in matrices and (said := _said(name, [name], old, new)):
            told.append(said + "".join(_for_ends(name, new[name].dtype, layout, rotated)))
    if said := _said(f"{counted(len(layers), 'matrix', 'matrices')} of layers", layers, old, new):
        told.append(said + _for_layers(layout, kept, {new[name].dtype for name in layers}))
    return told


def _grew(before: int, after: int) -> bool:
    """Whether there is more to see: 16 bytes that say a shape are none."""
    return after > before and human(after) != human(before)


def _said(what: str, names: Sequence[str], old: Tensors, new: Tensors) -> str:
    """What became larger, and of which types; empty: nothing did."""
    was, now = (sum(one[name].nbytes for name in names if name in one) for one in (old, new))
    if not _grew(was, now):
        return ""
    types = [
        "/".join(sorted({one[name].dtype for name in names if name in one})) or "absent" for one in (old, new)
    ]
    return f"  {what}: {human(was)} ({types[0]}) -> {human(now)} ({types[1]})"


def _for_ends(name: str, dtype: str, layout: str, rotated: bool) -> Iterator[str]:
    short = name.removesuffix(".weight").removeprefix("model.")
    if rotated and layout in ("hf", "llama"):
        yield f". {layout} is a folder of floats"
        return
    if rotated and dtype in FLOATS:
        yield ". --rotate turns them, which leaves floats"
        if layout in ("gguf", "mlx", "compressed-tensors"):
            yield f"; --override '{short}=int8-g32' rounds them"
        elif dtype == "F32":
            yield f"; --override '{short}=bf16' rounds them to half of that"
        return
    if layout == "gguf":
        return
    if dtype not in FLOATS:
        yield f". --override '{short}=int4-g64' takes fewer bits"
        yield "" if rotated else ", --to gguf keeps them as they are"
        return
    other = "--to gguf" if layout == "mlx" else "--to gguf (and often mlx)"
    yield f". {layout} has no place for them as they were, {other} has"
    if dtype == "F32" and layout in QUANTISED:
        yield f"; --override '{short}=bf16' rounds them to half of that"


def _kept_in(old: Tensors) -> str:
    """The layout in which matrices of layers stay as they are stored; empty: any, they are floats."""
    types = {info.dtype for name, info in old.items() if info.spec.row.group and name not in (EMBED, HEAD)}
    folders = [layout for layout in QUANTISED if any(one.startswith(f"{layout}-") for one in types)]
    return folders[0] if folders else "gguf" if types else ""


def _for_layers(layout: str, kept: str, types: Collection[str]) -> str:
    stay = f"--weights auto --to {kept}" if kept not in ("", layout) else "--weights auto"
    if layout == "gguf" and kept in ("", "gguf"):
        stay += " without --gguf-type"
    told = f". {stay} leaves them as they are stored"
    if layout in QUANTISED:
        return told + (", --weights int4 takes fewer bits" if any("int8" in one for one in types) else "")
    return told if layout == "gguf" else f". {layout} is a folder of floats, whatever was rounded{told}"
