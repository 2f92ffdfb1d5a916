"""Which layers read how many tokens, as the classes of transformers take config.json."""

from __future__ import annotations

from typing import Any

import pytest

from minicpm4.config.windows import read_windows
from minicpm4.errors import ConfigError

FULL, SLIDING = "full_attention", "sliding_attention"
ON = {"use_sliding_window": True, "sliding_window": 8}


@pytest.mark.parametrize(
    ("kind", "fields", "windows"),
    [
        ("mistral", {}, (4096,) * 4),  # the class's own default
        ("mistral", {"sliding_window": None}, ()),
        ("mistral", {"sliding_window": 8, "use_sliding_window": False}, (8,) * 4),  # not looked at
        ("mistral", {"sliding_window": 8, "layer_types": [SLIDING] * 4}, (8,) * 4),
        ("qwen2", {"sliding_window": 8}, ()),
        ("qwen2", ON, ()),  # from layer 28 on
        ("qwen2", {**ON, "max_window_layers": 0}, (8,) * 4),
        ("qwen3", {**ON, "max_window_layers": 3}, (0, 0, 0, 8)),
        ("qwen3", {**ON, "max_window_layers": 4}, ()),
        ("qwen3", {**ON, "max_window_layers": 0, "layer_types": [FULL, SLIDING] * 2}, (0, 8, 0, 8)),
        ("qwen3", {"use_sliding_window": True, "max_window_layers": 3}, (0, 0, 0, 4096)),
        ("qwen3", {"use_sliding_window": True, "sliding_window": 0, "max_window_layers": 0}, ()),
        ("llama", {"sliding_window": 64}, ()),  # holds all positions
        ("minicpm", {"layer_types": [FULL] * 4}, ()),
    ],
)
def test_windows_of_layers(kind: str, fields: dict[str, Any], windows: tuple[int, ...]) -> None:
    assert read_windows(fields, kind, 4, 64) == windows


@pytest.mark.parametrize(
    ("kind", "fields", "said"),
    [
        ("mistral", {"sliding_window": 0}, "leaves nothing to read"),
        (
            "mistral",
            {"sliding_window": 8, "layer_types": [FULL] * 4},
            "every layer of a Mistral has sliding_w",
        ),
        ("mistral", {"sliding_window": None, "layer_types": [SLIDING] * 4}, "has full attention"),
        ("qwen3", {"layer_types": [SLIDING] * 4}, "use_sliding_window and sliding_window give none"),
        ("qwen3", {"layer_types": [FULL] * 3}, "3 names for 4 layers"),
        ("qwen3", {"layer_types": ["linear_attention"] * 4}, "linear_attention, which is not supported"),
        ("qwen3", {**ON, "max_window_layers": -1}, "max_window_layers"),
        ("qwen2", {**ON, "use_sliding_window": "false"}, "use_sliding_window = 'false' is neither"),
        ("llama", {"sliding_window": 63}, "--ignore-field sliding_window"),
    ],
)
def test_what_contradicts_itself_is_refused(kind: str, fields: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        read_windows(fields, kind, 4, 64)
