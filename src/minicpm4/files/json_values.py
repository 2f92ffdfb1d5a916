"""Values as JSON that every reader takes."""

from __future__ import annotations

import json
import math
from typing import Any

__all__ = ["finite", "json_text"]


def json_text(
    value: Any, *, indent: int | None = None, sort_keys: bool = False, ascii_only: bool = True
) -> str:
    """A value as JSON that every reader takes. Raises ValueError for numbers that are not finite: ``finite``
    makes null of them."""
    return json.dumps(value, indent=indent, sort_keys=sort_keys, ensure_ascii=ascii_only, allow_nan=False)


def finite(value: Any) -> Any:
    """A value with null in place of numbers that are not finite, for which JSON has no word."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    return [finite(item) for item in value] if isinstance(value, list | tuple) else value
