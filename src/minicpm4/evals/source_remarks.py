"""What of a source is worth a remark before it is rounded."""

from __future__ import annotations

from collections.abc import Mapping

from minicpm4.config.strict import counted
from minicpm4.formats.checkpoint import Checkpoint
from minicpm4.formats.packing import exact_spec
from minicpm4.formats.quant import QuantSpec

__all__ = ["source_remarks"]


def source_remarks(source: Checkpoint, specs: Mapping[str, QuantSpec | None]) -> list[str]:
    """What to tell where matrices that become ``specs`` (None: they stay) are rounded already, otherwise, or
    become ternary and were not trained so, of which the first of them is a sample. Empty: nothing."""
    tensors = source.tensors
    rounded = {name: spec for name, spec in specs.items() if name in tensors and spec and spec.row.group}
    told = []
    stored = {name: tensors[name].spec for name in rounded}
    again = [name for name, spec in rounded.items() if stored[name].row.group and stored[name] != spec]
    if again:
        types = ", ".join(sorted({tensors[name].dtype for name in again}))
        told.append(
            f"{counted(len(again), 'matrix', 'matrices')} of the source, rounded already ({types}), will be "
            "rounded once more, and lose by both: convert the model's floats, if there are any"
        )
    ternary = [
        name for name, spec in rounded.items() if spec.kind == "ternary" and not stored[name].row.group
    ]
    if ternary and not _is_ternary(source, ternary[0]):
        told.append(
            f"the source was not trained for ternary weights ({ternary[0]} has others): such a model loses "
            "most of what it knows by rounding; --weights int4 keeps it"
        )
    return told


def _is_ternary(source: Checkpoint, name: str) -> bool:
    found = exact_spec(source.load(name))
    source.release(name)
    return found is not None and found.kind == "ternary"
