"""Sliding windows: how many tokens each layer reads, as a config.json of each class says it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from minicpm4.config.fields import CLASSES, is_nothing, refuse_fields
from minicpm4.config.strict import check_integer, require, shown

__all__ = ["read_windows", "window_fields"]

FULL, SLIDING = "full_attention", "sliding_attention"
_OLD_NAMES = {"attention": FULL}


def read_windows(raw: Mapping[str, Any], kind: str, layers: int, positions: int) -> tuple[int, ...]:
    """Tokens that each of ``layers`` reads, the query's own included; 0: all before it. Empty where no layer
    has a window.

    As the classes of transformers do it: Mistral's layers all have ``sliding_window`` (4,096 where the field
    is absent, none where it is null); of Qwen2 and Qwen3, with ``use_sliding_window``, those that
    ``layer_types`` calls sliding, else those from ``max_window_layers`` on; the others none. Raises
    ConfigError for fields that contradict one another, and for windows of a class that has none, unless they
    hold all ``positions``.
    """
    types = _layer_types(raw, layers)
    asked = raw.get("use_sliding_window")
    require(
        asked is None or type(asked) in (bool, int),
        f"config use_sliding_window = {shown(asked)} is neither true nor false",
    )
    window = _window(raw, kind)
    if kind.startswith("qwen"):
        slide = bool(raw.get("use_sliding_window")) and window is not None
        if types is None:
            first = raw.get("max_window_layers")
            first = 28 if first is None else first
            check_integer("config max_window_layers", first, 0, 1 << 31)
            types = [SLIDING if slide and index >= first else FULL for index in range(layers)]
        require(
            slide or SLIDING not in types,
            "config layer_types has sliding_attention, but use_sliding_window and sliding_window give none",
            "correct config.json, or: --ignore-field layer_types",
        )
    elif kind == "mistral":
        own = FULL if window is None else SLIDING
        require(
            types is None or set(types) == {own},
            f"config layer_types = {shown(types)}, but every layer of a Mistral has "
            + (f"sliding_window = {window}" if window else "full attention, as sliding_window is null"),
            "use the model type that the weights were trained as, or: --ignore-field layer_types",
        )
        types = [own] * layers
    else:
        _refuse_windows(raw, kind, types, window, positions)
        return ()
    windows = tuple((window or 0) if one == SLIDING else 0 for one in types)
    return windows if any(windows) else ()


def window_fields(windows: tuple[int, ...]) -> dict[str, Any]:
    """The fields of Qwen2 and Qwen3 that say ``windows``, of one size, layer by layer."""
    return {
        "use_sliding_window": True,
        "sliding_window": max(windows),
        "max_window_layers": 0,
        "layer_types": [SLIDING if window else FULL for window in windows],
    }


def _window(raw: Mapping[str, Any], kind: str) -> int | None:
    window = raw.get("sliding_window", CLASSES[kind].window)
    if raw.get("use_sliding_window") is False and kind != "mistral":  # whose class does not look at it
        return None
    if window is None:
        return None
    check_integer("config sliding_window", window, 0, 1 << 31)
    require(window > 0 or kind != "mistral", f"config sliding_window = {window} leaves nothing to read")
    return window or None


def _layer_types(raw: Mapping[str, Any], layers: int) -> list[str] | None:
    types = raw.get("layer_types")
    if types is None:
        return None
    known = isinstance(types, list | tuple) and all(isinstance(one, str) for one in types)
    require(known, f"config layer_types = {shown(types)} is not a list of names")
    named = [_OLD_NAMES.get(one, one) for one in types]
    require(len(named) == layers, f"config layer_types has {len(named)} names for {layers} layers")
    odd = sorted(set(named) - {FULL, SLIDING})
    require(not odd, f"config layer_types has {', '.join(odd[:3])[:100]}, which is not supported")
    return named


def _refuse_windows(
    raw: Mapping[str, Any], kind: str, types: list[str] | None, window: int | None, positions: int
) -> None:
    """Of classes whose layers read everything."""
    asked: tuple[str, ...] = ("sliding_window",) if window is not None and window < positions else ()
    asked += ("layer_types",) if types is not None and SLIDING in types else ()
    asked += ("use_sliding_window",) if asked and not is_nothing(raw.get("use_sliding_window")) else ()
    refuse_fields("config", CLASSES[kind].architectures[0], {name: raw[name] for name in asked})
