"""Quantised matrices as other tools read them: the inverse of ``formats/quantised.py``, value for value."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minicpm4.errors import ConfigError
from minicpm4.formats.names import EMBED, HEAD
from minicpm4.formats.quant import PackedTensor, QuantSpec
from minicpm4.formats.tensor_source import TensorSource
from minicpm4.formats.words import pack_words

__all__ = ["QUANTISED", "check_writable", "quantisation", "quantised_sources"]

Load = Callable[[], PackedTensor]
QUANTISED = ("compressed-tensors", "gptq")
"""Layouts that can be written."""


def check_writable(layout: str, name: str, shape: tuple[int, int], spec: QuantSpec) -> None:
    """Raise ConfigError unless ``layout`` has a place for the matrix ``name`` in format ``spec``."""
    where = f"{name} as {spec}"
    if not name.startswith(("model.layers.", "lm_head.")):
        raise ConfigError(f"{layout} has no place for {where}", "leave embeddings as they are (float)")
    if layout == "gptq" and name.startswith("lm_head."):
        raise ConfigError(f"few readers of gptq find a place for {where}", "leave the head as it is (float)")
    if spec.kind not in ("int4", "int8"):
        raise ConfigError(f"{layout} has no place for {where}", "it holds int4 and int8")
    if layout == "gptq" and shape[0] % (32 // spec.row.bits):
        raise ConfigError(f"gptq has no place for {where}: {shape[0]} rows do not fill its words")


def quantised_sources(
    layout: str, name: str, shape: tuple[int, int], spec: QuantSpec, half: bool, load: Load
) -> dict[str, TensorSource]:
    """The tensors that hold the matrix ``name`` (out, in) without offsets in ``layout``; ``half``: its
    scales are float16; ``load`` gives it, and may be asked more than once."""
    stem = name.removesuffix("weight")
    (rows, columns), bits = shape, spec.row.bits
    groups, each = columns // spec.group_size, 32 // bits
    words = -(-columns // each)
    zero = 1 << (bits - 1)
    scale_type = "F16" if half else "F32"
    if layout == "compressed-tensors":
        return {
            f"{stem}weight_packed": _source((rows, words), "I32", lambda: pack_words(_codes(load()), bits)),
            f"{stem}weight_scale": _source((rows, groups), scale_type, lambda: _scales(load())),
            f"{stem}weight_shape": _source((2,), "I64", lambda: np.array(shape, np.int64)),
        }

    def transposed() -> NDArray:
        return np.ascontiguousarray(pack_words(_codes(load()), bits).T)

    def zeros() -> NDArray:
        return pack_words(np.full((groups, rows), zero - 1, np.uint8), bits)

    order = np.arange(columns, dtype=np.int32) // spec.group_size
    return {
        f"{stem}qweight": _source((words, rows), "I32", transposed),
        f"{stem}qzeros": _source((groups, -(-rows // each)), "I32", zeros),
        f"{stem}scales": _source((groups, rows), scale_type, lambda: np.ascontiguousarray(_scales(load()).T)),
        f"{stem}g_idx": _source((columns,), "I32", lambda: order.astype(np.int32)),
    }


def quantisation(layout: str, specs: dict[str, QuantSpec], plain: Collection[str]) -> dict[str, Any]:
    """What config.json says of the matrices ``specs`` (by name) in ``layout``; ``plain``: those that stay
    floats. Raises ConfigError where it cannot say it."""
    if layout == "gptq":
        inside = sorted(name for name in plain if name.startswith("model.layers."))
        if inside:
            raise ConfigError(
                f"readers of gptq take every matrix of a layer for quantised, {inside[0]} is not",
                "use compressed-tensors",
            )
        kinds = set(specs.values())
        if len(kinds) != 1:
            raise ConfigError(
                "gptq has one format for all matrices", "use compressed-tensors, or no overrides"
            )
        spec = kinds.pop()
        return {
            "quant_method": "gptq",
            "checkpoint_format": "gptq",
            "bits": spec.row.bits,
            "group_size": spec.group_size,
            "desc_act": False,
            "sym": True,
            "lm_head": False,
            "pack_dtype": "int32",
        }
    by_spec: dict[QuantSpec, list[str]] = {}
    for name, spec in specs.items():
        by_spec.setdefault(spec, []).append(name.removesuffix(".weight"))
    groups = {}
    for index, (spec, names) in enumerate(by_spec.items()):
        weights = {
            "num_bits": spec.row.bits,
            "type": "int",
            "symmetric": True,
            "strategy": "group",
            "group_size": spec.group_size,
            "dynamic": False,
            "observer": "minmax",
        }
        # All of one kind: all linear layers but those ignored. Else each by its name.
        targets = ["Linear"] if len(by_spec) == 1 else names
        groups[f"group_{index}"] = {"targets": targets, "weights": weights}
    # A tied head is a linear layer too, which has no tensor.
    floats = {*plain, HEAD} - {EMBED, *specs}
    return {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "config_groups": groups,
        "ignore": sorted(name.removesuffix(".weight") for name in floats),
    }


def _source(shape: tuple[int, ...], dtype: str, make: Callable[[], NDArray]) -> TensorSource:
    return TensorSource(shape=shape, dtype=dtype, make=make)


def _codes(tensor: PackedTensor) -> NDArray[np.uint8]:
    """Codes (out, in) with 2**(bits - 1) added, as both layouts store them."""
    assert tensor.offsets is None
    found = tensor.spec.row.unpack(tensor.codes)
    return (found.astype(np.int16) + 128).astype(np.uint8) if tensor.spec.kind == "int8" else found


def _scales(tensor: PackedTensor) -> NDArray:
    assert tensor.scales is not None
    return tensor.scales
