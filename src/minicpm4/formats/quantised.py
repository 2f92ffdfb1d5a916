"""Weights that other tools quantised, as safetensors folders hold them: what their configuration says of how
they lie, which ``formats/quantised_methods.py`` reads."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

from minicpm4.config.strict import shown
from minicpm4.errors import CheckpointError
from minicpm4.formats.quantised_matrix import OWN_CONFIG, REMEDY, Layout, QuantisedMatrix, Scheme
from minicpm4.formats.quantised_methods import Awq, Compressed, Gptq, Marlin, Mlx

__all__ = ["Layout", "QuantisedMatrix", "layout_of", "mlx_layout"]

Config = Mapping[str, Any]
_BITS = (4, 8)
_MLX_BITS = (2, 4, 8)
# Versions of AWQ of which files are alike: others name a kernel that sorts them when it is loaded.
_GEMM = ("gemm", "exllama", "ipex")


def layout_of(config: Config, model: Config, names: Collection[str]) -> Layout:
    """The layout that ``quantization_config`` describes, of the config.json ``model`` and a folder with
    tensors called ``names``. Raises CheckpointError for one that cannot be read."""
    method = str(config.get("quant_method", "unknown")).lower()
    if method not in _READERS:
        raise CheckpointError(f"weights quantised by {method:.40} cannot be read yet", REMEDY)
    if method == "gptq" and _is_marlin(names):
        return _marlin(config, model)
    return _READERS[method](config)


def _gptq(config: Config) -> Layout:
    version = _version(config, "gptq", "checkpoint_format", "format")
    if version not in ("gptq", "gptq_v2") or config.get("is_marlin_format"):
        version = version if version not in ("gptq", "gptq_v2") else "marlin"
        raise CheckpointError(f"GPTQ weights in format {version:.40} cannot be read", REMEDY)
    words = str(config.get("pack_dtype") or "int32").removeprefix("torch.")
    if words != "int32":
        raise CheckpointError(f"GPTQ weights in words of pack_dtype {words:.40} cannot be read", REMEDY)
    # GPTQModel's ``dynamic`` may say otherwise of single matrices, by patterns.
    rules = config.get("dynamic")
    rules = rules.values() if isinstance(rules, Mapping) else ()
    symmetric = config.get("sym") is True and not any(
        isinstance(one, Mapping) and "sym" in one for one in rules
    )
    return Layout(
        method="gptq",
        form=Gptq,
        bits=_bits(config.get("bits")),
        group=_group(config.get("group_size")),
        mark="qweight",
        others=frozenset(("qzeros", "scales", "g_idx")),
        zero_first=1 if version == "gptq" else 0,
        needed=frozenset(("g_idx",) if config.get("desc_act") else ()),
        symmetric=f"sym: true and checkpoint_format: {version}" if symmetric else "",
    )


def _is_marlin(names: Collection[str]) -> bool:
    """Whether a folder that says gptq is CPM.cu's: its config.json is that of the GPTQ folder that it was
    made of, but there are no zeros."""
    return any(name.endswith(".qweight") for name in names) and not any(
        name.endswith((".qzeros", ".g_idx")) for name in names
    )


def _marlin(config: Config, model: Config) -> Layout:
    if _bits(config.get("bits")) != 4 or config.get("sym") is False or config.get("desc_act"):
        raise CheckpointError("Marlin weights that are not symmetric ones of 4 bits are unknown", REMEDY)
    heads = _heads(model, "num_attention_heads", None)
    return Layout(
        method="marlin",
        form=Marlin,
        bits=4,
        group=_group(config.get("group_size")),
        mark="qweight",
        others=frozenset(("scales",)),
        heads=(heads, _heads(model, "num_key_value_heads", heads)),
    )


def _heads(model: Config, name: str, absent: int | None) -> int:
    found = absent if model.get(name) is None else model[name]
    if type(found) is not int or not 0 < found < 1 << 16:
        raise CheckpointError(f"{name} = {found!r:.40}, by which fused matrices are cut, is no count", REMEDY)
    return found


def _awq(config: Config) -> Layout:
    version = _version(config, "gemm", "version", "format")
    backend = str(config.get("backend") or "autoawq").lower()
    if version not in _GEMM or backend == "llm-awq":
        version = version if version not in _GEMM else backend
        raise CheckpointError(
            f"AWQ weights in version {version:.40} cannot be read", "use one in version gemm"
        )
    bits = _bits(config.get("bits", config.get("w_bit")))
    if bits != 4:
        raise CheckpointError(f"AWQ weights of {bits} bits are unknown", REMEDY)
    return Layout(
        method="awq",
        form=Awq,
        bits=bits,
        group=_group(config.get("group_size", config.get("q_group_size"))),
        mark="qweight",
        others=frozenset(("qzeros", "scales")),
        symmetric="zero_point: false" if config.get("zero_point") is False else "",
    )


def _compressed(config: Config) -> Layout:
    kind = config.get("format")
    if kind != "pack-quantized":
        raise CheckpointError(f"compressed-tensors in format {kind!s:.40} cannot be read yet", REMEDY)
    groups = config.get("config_groups")
    schemes = list(groups.values()) if isinstance(groups, dict) else []
    weights = [
        one["weights"] for one in schemes if isinstance(one, dict) and isinstance(one.get("weights"), dict)
    ]
    if not schemes or len(weights) != len(schemes):
        raise CheckpointError(
            "compressed-tensors without config_groups that say how weights are held", REMEDY
        )
    for name in ("input_activations", "output_activations"):
        if any(one.get(name) for one in schemes):
            raise CheckpointError(f"compressed-tensors whose {name} are rounded cannot be read yet", REMEDY)
    for one in schemes:
        own = one.get("format")
        if own not in (None, kind):
            raise CheckpointError(f"compressed-tensors in format {own!s:.40} cannot be read yet", REMEDY)
    said = tuple(_scheme(one) for one in schemes)
    bits = {one.bits for one in said}
    if any(one.get("type", "int") != "int" for one in weights):
        raise CheckpointError("compressed-tensors whose weights are no integers cannot be read yet", REMEDY)
    if config.get("transform_config"):
        raise CheckpointError(
            "compressed-tensors with transform_config (states are turned at run time) cannot be read yet",
            REMEDY,
        )
    return Layout(
        method="compressed-tensors",
        form=Compressed,
        bits=bits.pop() if len(bits) == 1 else 0,
        mark="weight_packed",
        others=frozenset(("weight_scale", "weight_zero_point", "weight_shape", "weight_g_idx")),
        schemes=said,
    )


_READERS: dict[str, Callable[[Config], Layout]] = {
    "gptq": _gptq,
    "awq": _awq,
    "compressed-tensors": _compressed,
}


def mlx_layout(config: Config) -> Layout:
    """The layout that ``quantization`` describes, MLX's field of config.json: bits and group size of all
    matrices, and by their names of those that have others (``false``: floats). Raises CheckpointError."""
    own: dict[str, tuple[int, int]] = {}
    floats: set[str] = set()
    usual = _mlx_format(config, "quantization")
    for name, value in config.items():
        if name in ("bits", "group_size", "mode"):
            continue
        if value is False:
            floats.add(name)
        elif isinstance(value, Mapping):
            own[name] = _mlx_format({**value, "mode": value.get("mode", "affine")}, name)
        elif value is not True:
            raise CheckpointError(f"MLX weights whose quantization has {name:.80} = {value!r:.40}", REMEDY)
    return Layout(
        method="mlx",
        form=Mlx,
        bits=usual[0],
        group=usual[1],
        own=own,
        floats=frozenset(floats),
        mark="scales",
        others=frozenset(("weight", "biases")),
    )


def _mlx_format(config: Config, where: str) -> tuple[int, int]:
    mode, bits, group = config.get("mode", "affine"), config.get("bits"), config.get("group_size")
    if mode not in ("affine", None):
        raise CheckpointError(f"MLX weights in mode {shown(mode)} cannot be read yet ({where:.80})", REMEDY)
    if type(bits) is not int or bits not in _MLX_BITS:
        raise CheckpointError(
            f"MLX weights of {shown(bits)} bits cannot be read ({where:.80})",
            f"use {', '.join(map(str, _MLX_BITS))} bits",
        )
    if type(group) is not int or not 0 < group <= 1 << 20:
        raise CheckpointError(f"MLX weights in groups of {shown(group)} cannot be read ({where:.80})", REMEDY)
    return bits, group


def _version(config: Config, usual: str, *names: str) -> str:
    """The first of the fields ``names`` that is given, lower case."""
    return str(next((one for name in names if (one := config.get(name)) is not None), usual)).lower()


def _scheme(one: Config) -> Scheme:
    """What an entry of ``config_groups`` says of the weights of its matrices."""
    weights, targets = one["weights"], one.get("targets")
    strategy, size = weights.get("strategy", "group"), weights.get("group_size")
    if strategy not in ("group", "channel"):
        raise CheckpointError(
            f"compressed-tensors with scales by {strategy!s:.40} cannot be read yet", REMEDY
        )
    group = None if size is None else _group(size)
    if strategy == "channel":
        if group:
            raise CheckpointError(
                f"compressed-tensors with strategy channel and group_size {group} contradict one another",
                OWN_CONFIG,
            )
        group = 0
    symmetric = weights.get("symmetric")
    return Scheme(
        bits=_bits(weights.get("num_bits")),
        group=group,
        symmetric=symmetric if isinstance(symmetric, bool) else None,
        scattered=weights.get("actorder") in (True, "group"),
        names=frozenset(name for name in targets if isinstance(name, str))
        if isinstance(targets, list)
        else frozenset(),
    )


def _bits(found: Any) -> int:
    if not isinstance(found, int) or found not in _BITS:
        raise CheckpointError(f"quantised weights of {found!r:.40} bits cannot be read", "use 4 or 8 bits")
    return found


def _group(found: Any) -> int:
    if not isinstance(found, int) or isinstance(found, bool) or found < -1 or found > 1 << 20:
        raise CheckpointError(f"quantised weights with group_size {found!r:.40} cannot be read", REMEDY)
    return max(found, 0)
