"""What config.json says of quantised matrices in each layout, and which matrices a layout has a place for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from minicpm4.errors import ConfigError
from minicpm4.formats.ggml_fit import own_types
from minicpm4.formats.marlin import MARLIN_COLUMNS
from minicpm4.formats.names import EMBED, HEAD, pattern_of
from minicpm4.formats.quant import QuantSpec, group_sizes
from minicpm4.formats.quantised_methods import FUSED

__all__ = ["check_rows", "check_writable", "keeps_unasked", "quantisation", "refusals"]

Specs = Mapping[str, QuantSpec]
_OTHER = "use --to compressed-tensors"
_FLOATS = ("awq",)
"""Layouts of one format in which some matrices of a layer may be floats."""
_FEW = (
    "embeddings are quantised in compressed-tensors: this package reads them, transformers (5.23 with "
    "compressed-tensors 0.20) does not. --to mlx and --to gguf have a place for them"
)
_VLLM = ("compressed-tensors", "awq")
"""Layouts that vLLM reads in which matrices of a layer may differ."""
_LATER = frozenset(part for parts in FUSED.values() for part in parts[1:])


@dataclass(frozen=True, kw_only=True, slots=True)
class _Rules:
    """``kinds`` that a layout holds, in ``groups`` of these sizes (none: any); ``rows`` that matrices have
    multiples of, for 4 bits; ``head`` and ``embed``: whether they may be quantised; ``few``: that few readers
    have a place for such embeddings, which are written where they are asked for; ``one``: all matrices of
    layers are, in one format."""

    kinds: tuple[str, ...] = ("int4", "int8")
    groups: tuple[int, ...] = ()
    rows: int = 0
    head: bool = False
    embed: bool = False
    few: bool = False
    one: bool = True


_RULES = {
    "compressed-tensors": _Rules(head=True, embed=True, few=True, one=False),
    "gptq": _Rules(rows=8),
    "awq": _Rules(kinds=("int4",), rows=8),
    # Of CPM.cu's kernel and its converter.
    "marlin": _Rules(kinds=("int4",), groups=(128,)),
    "mlx": _Rules(kinds=("int4", "int8", "ternary"), groups=(32, 64, 128), head=True, embed=True, one=False),
}


def check_writable(layout: str, specs: Specs, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raise ConfigError unless ``layout`` has a place for every matrix of ``specs``, in a model with tensors
    of ``shapes``."""
    widths = {shapes[name][1] for name in specs}
    for name, spec in specs.items():
        _check_matrix(layout, name, (shapes[name][0], shapes[name][1]), spec, widths)
    rules = _RULES[layout]
    short = [name for name, spec in specs.items() if not _fills_words(rules, shapes[name][0], spec)]
    if short:
        floats = f"leave as floats what does not: --override '{pattern_of(short)}=float'; or "
        raise ConfigError(
            f"{layout} has no place for {short[0]} as {specs[short[0]]}: {shapes[short[0]][0]} rows do not "
            "fill its words",
            ("" if rules.one and layout not in _FLOATS else floats) + _OTHER,
        )
    if layout == "marlin":
        _check_fused(shapes)


def _check_matrix(
    layout: str, name: str, shape: tuple[int, int], spec: QuantSpec, widths: Collection[int]
) -> None:
    """``widths``: of the rows of all matrices that are rounded."""
    rules, where = _RULES[layout], f"{name} as {spec}"
    if name == EMBED and not rules.embed:
        raise ConfigError(f"{layout} has no place for {where}", "leave embeddings as they are (float)")
    if name == HEAD and not rules.head:
        raise ConfigError(f"few readers of {layout} have a place for {where}", "leave the head float")
    if spec.kind not in rules.kinds:
        others = [other for other in _RULES if _holds(other, name, shape[0], spec)]
        others += ["gguf"] if own_types(spec, shape[1]) else []
        raise ConfigError(
            f"{layout} has no place for {where}",
            f"it holds {' and '.join(rules.kinds)}; {spec.kind} goes into {', '.join(others)} and hf",
        )
    if rules.groups and spec.group_size not in rules.groups:
        sizes = " or ".join(map(str, rules.groups))
        fitting = [size for size in group_sizes(rules.kinds[0], widths) if size in rules.groups]
        again = (
            f"round to {rules.kinds[0]}-g{fitting[-1]} or the like (--weights {rules.kinds[0]} --group "
            f"{fitting[-1]}, in an --override alike), or keep"
            if fitting
            else "none of them fits all rows; keep"
        )
        raise ConfigError(
            f"{layout} has no place for {where}",
            f"its groups are of {sizes}: {again} it as it is in a file (--to gguf)",
        )


def _fills_words(rules: _Rules, rows: int, spec: QuantSpec) -> bool:
    return not rules.rows or rows * spec.row.bits % (4 * rules.rows) == 0


def _holds(layout: str, name: str, rows: int, spec: QuantSpec) -> bool:
    """Whether a layout has a place for the matrix ``name`` with so many rows in ``spec``."""
    rules = _RULES[layout]
    place = {EMBED: rules.embed, HEAD: rules.head}.get(name, True)
    groups = not rules.groups or spec.group_size in rules.groups
    return place and groups and spec.kind in rules.kinds and _fills_words(rules, rows, spec)


def one_format(layout: str) -> bool:
    """Whether all matrices of a folder in ``layout`` have the same format."""
    return layout in _RULES and _RULES[layout].one


def keeps_unasked(layout: str, name: str) -> bool:
    """Whether the matrix ``name``, stored quantised, may stay so in ``layout`` without being asked for."""
    rules = _RULES.get(layout)
    if rules is None:
        return True
    if name in (EMBED, HEAD):
        return rules.head if name == HEAD else rules.embed and not rules.few
    return not rules.one


def check_rows(layout: str, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raise ConfigError where a layout that takes all matrices of layers has no groups that fit them."""
    rules = _RULES.get(layout)
    if rules is None or not (rules.one and rules.groups):
        return
    layers = {
        name: shape for name, shape in shapes.items() if name.startswith("model.layers.") and len(shape) == 2
    }
    widths = {shape[1] for shape in layers.values()}
    for name, shape in layers.items():
        if all(shape[1] % size for size in rules.groups):
            sizes = " or ".join(map(str, rules.groups))
            raise ConfigError(
                f"{layout} has no form of this model: its groups are of {sizes}, and {name} has rows "
                f"of {shape[1]} weights",
                " ".join([_OTHER, *(f"--group {size}" for size in group_sizes(rules.kinds[0], widths)[-1:])]),
            )


def _check_fused(shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Marlin as CPM.cu has it: q, k and v in one matrix, gate and up in another, and no more than norms
    beside them."""
    for name, shape in shapes.items():
        if not name.startswith("model.layers."):
            continue
        stem, last = name.removesuffix(".weight").rpartition(".")[::2]
        if len(shape) == 1 and not last.endswith("layernorm"):
            raise ConfigError(f"marlin has no place for {name}", _OTHER)
        if len(shape) == 1 or last in _LATER:
            continue
        together = next((parts for parts in FUSED.values() if last == parts[0]), (last,))
        rows = sum(shapes[f"{stem}.{part}.weight"][0] for part in together)
        if rows % MARLIN_COLUMNS:
            named = name + (f" with {' and '.join(together[1:])}" if together[1:] else "")
            raise ConfigError(
                f"marlin has no place for the {rows} rows of {named}, no multiple of {MARLIN_COLUMNS}", _OTHER
            )


def refusals(layout: str, specs: Mapping[str, QuantSpec | None]) -> list[str]:
    """What to tell of a folder in ``layout`` that a reader of that refuses; ``specs``: of all matrices, None:
    floats. Empty: nothing."""
    rules, embed = _RULES.get(layout), specs.get(EMBED)
    few = [_FEW] if rules is not None and rules.few and embed and embed.row.group else []
    return [*few, *_fused_apart(layout, specs)]


def _fused_apart(layout: str, specs: Mapping[str, QuantSpec | None]) -> list[str]:
    """What to tell where matrices that vLLM holds as one have several formats in ``layout``, of which it
    refuses the folder; ``specs``: of all matrices, None: floats. Empty: they have not."""
    found = []
    for name in specs if layout in _VLLM else ():
        stem, last = name.removesuffix(".weight").rpartition(".")[::2]
        for parts in (parts for parts in FUSED.values() if last == parts[0]):
            every = [specs[f"{stem}.{part}.weight"] for part in parts]
            own = [str(spec) if spec and spec.row.group else "floats" for spec in every]
            if len({*own}) > 1:
                pairs = zip(parts, own, strict=True)
                found.append(f"{stem} has {', '.join(f'{part} in {spec}' for part, spec in pairs)}")
    if not found:
        return []
    more = f", and {len(found) - 1} more" if found[1:] else ""
    return [
        "vLLM will refuse the folder, which this package and transformers read: q, k and v are one matrix "
        f"there, gate and up another, of one format each, but {found[0]}{more}. --override '[qkv]_proj=…' "
        "and '(gate|up)_proj=…' give each one format, with --bits, too"
    ]


def quantisation(
    layout: str, specs: Specs, plain: Collection[str], shifted: Collection[str] = ()
) -> dict[str, Any]:
    """Fields of config.json for the matrices ``specs`` (by name) in ``layout``; ``plain``: those that stay
    floats; ``shifted``: those of ``specs`` with offsets. Raises ConfigError where it cannot say it."""
    if _RULES[layout].one:
        inside = sorted(name for name in plain if name.startswith("model.layers."))
        if inside and layout not in _FLOATS:
            raise ConfigError(
                f"readers of {layout} take every matrix of a layer for quantised, {inside[0]} is not", _OTHER
            )
        if len(set(specs.values())) != 1:
            raise ConfigError(f"{layout} has one format for all matrices", f"{_OTHER}, or no overrides")
    return _WRITERS[layout](specs, plain, shifted)


def _gptq(specs: Specs, plain: Collection[str], shifted: Collection[str]) -> dict[str, Any]:
    spec = next(iter(specs.values()))
    said = {
        "quant_method": "gptq",
        "checkpoint_format": "gptq",
        "bits": spec.row.bits,
        "group_size": spec.group_size,
        "desc_act": False,
        "sym": not shifted,
        "lm_head": False,
        "pack_dtype": "int32",
    }
    return {"quantization_config": said}


def _marlin(specs: Specs, plain: Collection[str], shifted: Collection[str]) -> dict[str, Any]:
    """As CPM.cu's converter leaves it: that of the GPTQ folder."""
    said = _gptq(specs, plain, shifted)["quantization_config"]
    return {"quantization_config": {**said, "static_groups": True}}


def _awq(specs: Specs, plain: Collection[str], shifted: Collection[str]) -> dict[str, Any]:
    kept = sorted(name.removesuffix(".weight") for name in plain if name.startswith("model.layers."))
    said = {
        "quant_method": "awq",
        "version": "gemm",
        "bits": 4,
        "group_size": next(iter(specs.values())).group_size,
        "zero_point": True,
        "modules_to_not_convert": kept or None,
    }
    return {"quantization_config": said}


def _compressed(specs: Specs, plain: Collection[str], shifted: Collection[str]) -> dict[str, Any]:
    by_spec: dict[tuple[QuantSpec, bool], list[str]] = {}
    for name, spec in specs.items():
        by_spec.setdefault((spec, name in shifted), []).append(name.removesuffix(".weight"))
    groups = {}
    for index, ((spec, zeros), names) in enumerate(by_spec.items()):
        weights = {
            "num_bits": spec.row.bits,
            "type": "int",
            "symmetric": not zeros,
            "strategy": "group",
            "group_size": spec.group_size,
            "dynamic": False,
            "observer": "minmax",
        }
        # All of one kind: all linear layers but those ignored. Else each by its name.
        classes = ["Linear", "Embedding"] if EMBED in specs else ["Linear"]
        targets = classes if len(by_spec) == 1 else names
        groups[f"group_{index}"] = {"targets": targets, "weights": weights}
    # A tied head is a linear layer too, which has no tensor.
    floats = {*plain, HEAD} - {EMBED, *specs}
    said = {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "config_groups": groups,
        "ignore": sorted(name.removesuffix(".weight") for name in floats),
    }
    return {"quantization_config": said}


def _mlx(specs: Specs, plain: Collection[str], shifted: Collection[str]) -> dict[str, Any]:
    """The format of most, and by name those of others; floats have no scales, which tells."""
    usual = Counter(specs.values()).most_common(1)[0][0]
    said: dict[str, Any] = _mlx_format(usual)
    said |= {name.removesuffix(".weight"): _mlx_format(one) for name, one in specs.items() if one != usual}
    return {"quantization": said, "quantization_config": said}  # its own tools write it twice


def _mlx_format(spec: QuantSpec) -> dict[str, Any]:
    return {"group_size": spec.group_size, "bits": spec.row.bits, "mode": "affine"}


_WRITERS: dict[str, Callable[[Specs, Collection[str], Collection[str]], dict[str, Any]]] = {
    "compressed-tensors": _compressed,
    "gptq": _gptq,
    "awq": _awq,
    "marlin": _marlin,
    "mlx": _mlx,
}
